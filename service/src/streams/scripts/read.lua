-- Reads new entries for the group. ARGV: consumer, count.
-- Answers {'ok', last delivered id, [id, fields]...}.
local stop = fenced()
if stop then return stop end
local reply = redis.pcall('XREADGROUP', 'GROUP', 'workers', ARGV[5], 'COUNT', ARGV[6], 'STREAMS', KEYS[2], '>')
if reply and reply.err then
  if string.sub(reply.err, 1, 7) == 'NOGROUP' then return {'nogroup'} end
  return reply
end
local entries = {}
if reply then
  entries = reply[1][2]
end
local last = '0-0'
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
  local seen = {}
  for i = 1, #group, 2 do seen[group[i]] = group[i + 1] end
  if seen['name'] == 'workers' then last = seen['last-delivered-id'] end
end
return {'ok', last, entries}
