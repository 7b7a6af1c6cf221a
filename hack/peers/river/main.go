// River's part of `hack/peers/run`: jobs that do nothing, first inserted and then worked, then both together.
// Prints one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

const batch = 500 // jobs of a call, as records of a request
const most = 20000 // jobs that wait at most while both run

type job struct {
	N int `json:"n"`
}

func (job) Kind() string { return "nothing" }

type worker struct {
	river.WorkerDefaults[job]
	worked *atomic.Int64
}

func (w *worker) Work(context.Context, *river.Job[job]) error {
	w.worked.Add(1)
	return nil
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func main() {
	jobs := flag.Int64("jobs", 100000, "jobs that are inserted before they are worked")
	seconds := flag.Float64("seconds", 20, "time of inserting and working together")
	flag.Parse()
	ctx := context.Background()
	pool := must(pgxpool.New(ctx, os.Getenv("DATABASE_URL")))
	driver := riverpgxv5.New(pool)
	must(must(rivermigrate.New(driver, nil)).Migrate(ctx, rivermigrate.DirectionUp, nil))

	var worked, inserted atomic.Int64
	workers := river.NewWorkers()
	river.AddWorker(workers, &worker{worked: &worked})
	client := must(river.NewClient(driver, &river.Config{
		Logger:  slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
		Workers: workers,
		// The usual 100 ms between two fetches would be the limit.
		FetchCooldown:     2 * time.Millisecond,
		FetchPollInterval: 20 * time.Millisecond,
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 2000}},
	}))
	insert := func() {
		many := make([]river.InsertManyParams, batch)
		for i := range many {
			many[i] = river.InsertManyParams{Args: job{i}}
		}
		must(client.InsertManyFast(ctx, many))
		inserted.Add(batch)
	}
	figures := map[string]float64{}
	began := time.Now()
	rate := func(n int64) float64 { return float64(n) / time.Since(began).Seconds() }

	for inserted.Load() < *jobs {
		insert()
	}
	figures["accepted_per_second"] = rate(inserted.Load())
	began = time.Now()
	if err := client.Start(ctx); err != nil {
		panic(err)
	}
	for worked.Load() < inserted.Load() {
		time.Sleep(2 * time.Millisecond)
	}
	figures["preloaded_per_second"] = rate(worked.Load())

	before := worked.Load()
	began = time.Now()
	for time.Since(began).Seconds() < *seconds {
		if inserted.Load()-worked.Load() < most {
			insert()
		} else {
			time.Sleep(time.Millisecond)
		}
	}
	figures["together_per_second"] = rate(worked.Load() - before)
	stop, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := client.Stop(stop); err != nil {
		panic(err)
	}
	var completed int64
	if err := pool.QueryRow(ctx, "select count(*) from river_job where state = 'completed'").Scan(&completed); err != nil {
		panic(err)
	}
	if completed != worked.Load() {
		panic("jobs that were worked are not completed")
	}
	if err := json.NewEncoder(os.Stdout).Encode(figures); err != nil {
		panic(err)
	}
}
