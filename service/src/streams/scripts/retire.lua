#!lua flags=allow-oom
-- Ends a generation of a cursor, so that no publisher moves it any more. Returns its fields; none if it is missing.
-- KEYS: cursor. ARGV: pipeline id, sink, generation, 'keep' or 'delete'.
local held = redis.call('HMGET', KEYS[1], 'pipeline', 'sink', 'cursor_generation')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] or held[3] ~= ARGV[3] then return {} end
if ARGV[4] == 'delete' then
  redis.call('DEL', KEYS[1])
  return {}
end
redis.call('HSET', KEYS[1], 'retired', '1')
return redis.call('HGETALL', KEYS[1])
