//! A connection that has to keep moving: its next request has to come, a request's head has to be whole, and an answer has
//! to be taken, each within its time.
//!
//! Must never end a connection while its request is being handled: bodies have a guard of their own, and an answer may take
//! long to begin.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// How long each may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Until the next request begins. Longer than load balancers keep a connection, so that it is they who end it.
    pub(super) idle: Duration,
    /// From the first byte of a request until its head is whole.
    pub(super) head: Duration,
    /// Until a reader who stalls takes any more of an answer.
    pub(super) stall: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { idle: Duration::from_secs(120), head: Duration::from_secs(10), stall: Duration::from_secs(30) }
    }
}

/// How long is read on after the last answer, for a client that is still sending: closed with something unread, a connection
/// is reset, and the answer lost.
const LINGER: Duration = Duration::from_secs(5);

/// State of a connection, and since when.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Idle(Instant),
    Head(Instant),
    Request,
}

/// Says where the connection stands: shared by its two ends, its bytes and its requests.
#[derive(Debug, Clone)]
pub(super) struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Notified of the end of a request: from then on the time for the next one runs.
    reader: Option<Waker>,
}

impl Turns {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request whose head is whole; it lasts until its answer is, or until this is dropped.
    pub(super) fn begin(&self) -> Turn {
        self.state().phase = Phase::Request;
        Turn(self.clone())
    }
}

/// A request that is being handled.
#[derive(Debug)]
pub(super) struct Turn(Turns);

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.phase = Phase::Idle(Instant::now());
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

/// The bytes of a connection, in both directions; with TLS, what it protects.
#[derive(Debug)]
pub(super) struct Paced<S> {
    stream: S,
    pace: Pace,
    turns: Turns,
    /// For reading and for writing; of no meaning until something waits.
    alarm: [Pin<Box<Sleep>>; 2],
    /// Since when a write has waited.
    stalled: Option<Instant>,
    /// Until when is read on after the last answer.
    lingers: Option<Instant>,
}

impl<S> Paced<S> {
    /// A connection that was just made.
    pub(super) fn new(stream: S, pace: Pace) -> (Self, Turns) {
        let now = Instant::now();
        let turns = Turns(Arc::new(Mutex::new(State { phase: Phase::Idle(now), reader: None })));
        let alarm = [(); 2].map(|()| Box::pin(sleep_until(now + pace.idle)));
        (Self { stream, pace, turns: turns.clone(), alarm, stalled: None, lingers: None }, turns)
    }

    /// Pending until `deadline`, then an error.
    fn wait(&mut self, which: usize, deadline: Instant, context: &mut Context<'_>) -> Poll<io::Error> {
        let alarm = &mut self.alarm[which];
        if alarm.deadline() != deadline {
            alarm.as_mut().reset(deadline);
        }
        alarm.as_mut().poll(context).map(|()| io::ErrorKind::TimedOut.into())
    }

    fn written<T>(&mut self, outcome: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let since = *self.stalled.get_or_insert_with(Instant::now);
        self.wait(1, since + self.pace.stall, context).map(Err)
    }
}

impl<S: AsyncRead + Unpin> Paced<S> {
    /// Passes over what the client still sends, until it has ended the connection or its time has passed.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(until) = self.lingers else { return Poll::Ready(()) };
        let mut passed_over = [0; 4096];
        while Instant::now() < until {
            let mut buffer = ReadBuf::new(&mut passed_over);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => break,
                Poll::Pending => {
                    let _late = ready!(self.wait(0, until, context));
                }
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.lingers.is_some() {
            ready!(self.poll_linger(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(context, buffer) {
            let mut state = self.turns.state();
            if let Phase::Idle(_) = state.phase
                && buffer.filled().len() > before
            {
                state.phase = Phase::Head(Instant::now());
            }
            return Poll::Ready(read);
        }
        let phase = {
            let mut state = self.turns.state();
            state.reader = Some(context.waker().clone());
            state.phase
        };
        let deadline = match phase {
            Phase::Request => return Poll::Pending,
            Phase::Idle(since) => since + self.pace.idle,
            Phase::Head(since) => since + self.pace.head,
        };
        let late = ready!(self.wait(0, deadline, context));
        if let Phase::Head(_) = phase {
            // The HTTP library would end the connection without a word. It has written nothing since the last answer, which
            // this may follow; what does not fit at once is not worth waiting for.
            let detail =
                format!("the head of the request took longer than {} s; send it again", self.pace.head.as_secs());
            let answer = super::problem::bare(408, "request_timeout", &detail);
            let _ = Pin::new(&mut self.stream).poll_write(context, &answer);
            let _ = Pin::new(&mut self.stream).poll_flush(context);
            let _ = Pin::new(&mut self.stream).poll_shutdown(context);
            self.lingers = Some(Instant::now() + LINGER);
            ready!(self.poll_linger(context));
        }
        Poll::Ready(Err(late))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(outcome, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.written(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS holds bytes that the reader has not taken.
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.written(outcome, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingers.is_none() {
            let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
            ready!(self.written(outcome, context))?;
            self.lingers = Some(Instant::now() + LINGER);
        }
        self.poll_linger(context).map(Ok)
    }
}
