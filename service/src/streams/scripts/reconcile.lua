-- Raises the counts of a rewound Redis to those that Postgres holds, so that the offsets of the records that it lost are
-- not given again. ARGV: number of records of the producers that are folded, then per producer: name, number of records.
-- Returns {'ok', offset of the last appended record, that offset as the producers count it, number of records by which the
-- counts were raised, seconds for which this server has been seen, [count of each producer], [name and count of each
-- producer that was not named]}. It raises nothing while there are such producers.
local stop = fenced()
if stop then return stop end
local now = tonumber(redis.call('TIME')[1])
-- Another process, or another primary, can have lost the newest counts. A server that hides its ids is new each time.
local answer = redis.pcall('INFO', 'server', 'replication')
local info = type(answer) == 'string' and answer or ''
local server = (string.match(info, 'run_id:(%x+)') or '') .. ':' .. (string.match(info, 'master_replid:(%x+)') or '')
local seen = redis.call('HMGET', KEYS[1], 'server', 'since', 'appended')
local since = seen[1] == server and #server > 1 and tonumber(seen[2]) or now
if since == now then redis.call('HSET', KEYS[1], 'server', server, 'since', now) end
local appended, total, raised = tonumber(seen[3] or '0'), tonumber(ARGV[6]), 0
local counts, named, unknown, raises = {}, {}, {}, {}
for i = 7, #ARGV, 2 do
  local field, noted = 'by:' .. ARGV[i], tonumber(ARGV[i + 1])
  local held = tonumber(redis.call('HGET', KEYS[1], field) or '0')
  named[field], counts[#counts + 1] = true, held
  if held < noted then
    raised = raised + noted - held
    raises[#raises + 1] = field
    raises[#raises + 1] = ARGV[i + 1]
  end
  total = total + math.max(held, noted)
end
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 3) == 'by:' and not named[fields[i]] then
    unknown[#unknown + 1] = string.sub(fields[i], 4)
    unknown[#unknown + 1] = fields[i + 1]
  end
end
if #unknown == 0 then
  for i = 1, #raises, 2 do redis.call('HSET', KEYS[1], raises[i], raises[i + 1]) end
  if total > appended then
    appended = total
    redis.call('HSET', KEYS[1], 'appended', string.format('%.0f', appended))
  end
end
return {'ok', appended, total, raised, now - since, counts, unknown}
