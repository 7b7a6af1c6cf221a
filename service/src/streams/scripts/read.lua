-- Reads new entries for the group. ARGV: consumer, count.
-- Answers {'ok', last delivered id, entries removed without having been delivered, [id, fields]...}.
local stop = fenced()
if stop then return stop end
local reply = redis.pcall('XREADGROUP', 'GROUP', 'workers', ARGV[4], 'COUNT', ARGV[5], 'STREAMS', KEYS[2], '>')
if reply and reply.err then
  if string.sub(reply.err, 1, 7) == 'NOGROUP' then return {'nogroup'} end
  return reply
end
local entries = {}
if reply then
  entries = reply[1][2]
end
-- What is gone from the stream must have been delivered and settled: removed <= read - pending.
local added, length = 0, 0
local info = redis.call('XINFO', 'STREAM', KEYS[2])
for i = 1, #info, 2 do
  if info[i] == 'entries-added' then added = info[i + 1] elseif info[i] == 'length' then length = info[i + 1] end
end
local pending, last = 0, '0-0'
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
  local seen = {}
  for i = 1, #group, 2 do seen[group[i]] = group[i + 1] end
  if seen['name'] == 'workers' then pending, last = seen['pending'], seen['last-delivered-id'] end
end
local read = tonumber(redis.call('HGET', KEYS[1], 'read'))
if not read then
  -- The fence was gone, and with it the count: it starts anew where nothing is missing.
  read = added - length + pending
  redis.call('HSET', KEYS[1], 'read', string.format('%.0f', read))
elseif #entries > 0 then
  read = redis.call('HINCRBY', KEYS[1], 'read', #entries)
end
return {'ok', last, math.max(0, (added - length) - (read - pending)), entries}
