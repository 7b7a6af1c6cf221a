#!lua flags=no-writes
-- The state of one shard in one step, so that the group and the counters are of one moment. KEYS: stream, the hash beside it.
-- ARGV: the group. Returns the time in seconds and microseconds, number of entries, the oldest id that is not acknowledged,
-- and the counters and the pipeline id of the hash.
local time = redis.call('TIME')
local held = redis.call('HMGET', KEYS[2], 'appended', 'acknowledged', 'pipeline')
local entries, oldest, last = redis.call('XLEN', KEYS[1]), false, '0-0'
if entries > 0 then
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
    if group['name'] == ARGV[1] then
      last = group['last-delivered-id']
      if group['pending'] > 0 then oldest = redis.call('XPENDING', KEYS[1], ARGV[1])[2] end
    end
  end
  if not oldest then
    local first = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)[1]
    oldest = first and first[1]
  end
end
return {time[1], time[2], entries, oldest, held[1], held[2], held[3]}
