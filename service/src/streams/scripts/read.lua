-- Reads new entries for the group, in steps, until they have enough records or bytes.
-- ARGV: consumer, entries of a step, records, bytes.
-- Returns {'ok', entries as [id, fields]...}; without an entry {'ok', {}, last delivered id, offset of the last appended
-- record, number of pending entries}.
local stop = fenced()
if stop then return stop end
local step, records, bytes, entries = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), {}
local reply
repeat
  reply = redis.pcall('XREADGROUP', 'GROUP', 'workers', ARGV[6], 'COUNT', step, 'STREAMS', KEYS[2], '>')
  if reply and reply.err then
    if string.sub(reply.err, 1, 7) == 'NOGROUP' then return {'nogroup'} end
    return reply
  end
  reply = reply and reply[1][2] or {}
  for _, entry in ipairs(reply) do
    entries[#entries + 1] = entry
    local more, size = measured(entry[2])
    records, bytes = records - more, bytes - size
  end
until #reply < step or records <= 0 or bytes <= 0
if #entries > 0 then return {'ok', entries} end
local last, pending = '0-0', 0
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
  local seen = {}
  for i = 1, #group, 2 do seen[group[i]] = group[i + 1] end
  if seen['name'] == 'workers' then last, pending = seen['last-delivered-id'], seen['pending'] end
end
return {'ok', entries, last, redis.call('HGET', KEYS[1], 'appended') or '0', pending}
