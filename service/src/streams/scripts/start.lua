#!lua flags=allow-oom
-- Creates a sink's cursor for one generation. KEYS: cursor, stream. ARGV: pipeline id, sink, generation, the id of the
-- pipeline whose stream may be taken over or '', then pairs of shard and number. Replaces a cursor of the same sink
-- with an older generation, and the cursor of a sink with the same name that is taken over: the source of an entry
-- names its pipeline. Generations sort by time: if a newer one exists, the caller was stalled. Stores the newest id of
-- the stream as `behind`: entries up to it are of earlier generations.
-- Returns {'ok'}, {'newer'} or {'taken', pipeline id, sink}.
local held = redis.call('HMGET', KEYS[1], 'pipeline', 'sink', 'cursor_generation')
local ours = held[1] == ARGV[1] or (ARGV[4] ~= '' and held[1] == ARGV[4])
if held[1] and not (ours and held[2] == ARGV[2]) then return {'taken', held[1], held[2] or ''} end
if held[1] == ARGV[1] and held[3] == ARGV[3] then return {'ok'} end
if held[1] == ARGV[1] and held[3] and held[3] > ARGV[3] then return {'newer'} end
local behind = '0-0'
if redis.call('EXISTS', KEYS[2]) == 1 then
  local about = redis.call('XINFO', 'STREAM', KEYS[2])
  for k = 1, #about, 2 do
    if about[k] == 'last-generated-id' then behind = about[k + 1] end
  end
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'pipeline', ARGV[1], 'sink', ARGV[2], 'cursor_generation', ARGV[3], 'behind', behind, unpack(ARGV, 5))
return {'ok'}
