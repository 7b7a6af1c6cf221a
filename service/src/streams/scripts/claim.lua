-- Takes over pending entries, whoever they were delivered to. ARGV: consumer, start (exclusive with '('), count.
-- Answers {'ok', next start or '', ids that are gone, [id, fields]..., deliveries...}.
local stop = fenced()
if stop then return stop end
local pending = redis.pcall('XPENDING', KEYS[2], 'workers', ARGV[6], '+', ARGV[7])
if pending.err then
  if string.sub(pending.err, 1, 7) == 'NOGROUP' then return {'nogroup'} end
  return pending
end
if #pending == 0 then
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[2], 'workers')) do
    local name, owed
    for i = 1, #consumer, 2 do
      if consumer[i] == 'name' then name = consumer[i + 1] elseif consumer[i] == 'pending' then owed = consumer[i + 1] end
    end
    if name ~= ARGV[5] and owed == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[2], 'workers', name) end
  end
  return {'ok', '', {}, {}, {}}
end
local ids, deliveries = {}, {}
for i, item in ipairs(pending) do
  ids[i] = item[1]
  deliveries[item[1]] = item[4] + 1
end
local entries, counts, gone, there = {}, {}, {}, {}
for _, entry in ipairs(redis.call('XCLAIM', KEYS[2], 'workers', ARGV[5], 0, unpack(ids))) do
  if entry and entry[2] then
    there[entry[1]] = true
    entries[#entries + 1] = entry
    counts[#counts + 1] = deliveries[entry[1]]
  end
end
for _, id in ipairs(ids) do if not there[id] then gone[#gone + 1] = id end end
return {'ok', '(' .. ids[#ids], gone, entries, counts}
