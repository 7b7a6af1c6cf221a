#!lua flags=allow-oom
-- Makes a sink's cursor for one generation. KEYS: cursor, stream. ARGV: pipeline id, sink, generation, the id of the
-- pipeline whose streams may be taken over or '', then shard, number pairs.
-- A cursor of the same sink and an older generation is out of date and is replaced, as is that of a sink of the same name
-- that is taken over: the entries' source tells whose they are. Generations sort by their time: where a newer one stands,
-- whoever asks was stalled for a while. Notes the stream's newest id: entries up to it are of
-- earlier starts.
-- Answers {'ok'}, {'newer'} or {'taken', pipeline id, sink}.
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
