-- Reclaims pending entries of any consumer, in order, in steps, until they have enough records or bytes.
-- ARGV: consumer, start (exclusive with '('), records, bytes.
-- Returns {'ok', start of the next call or '', number of pending entries that are deleted, entries as [id, fields]...,
-- deliveries...}.
local stop = fenced()
if stop then return stop end
local start, records, bytes = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9])
local entries, deliveries, deleted = {}, {}, 0
repeat
  local step = math.min(next_step(#entries, tonumber(ARGV[9]) - bytes), tonumber(ARGV[8]))
  local pending = redis.pcall('XPENDING', KEYS[2], 'workers', start, '+', step)
  if pending.err then
    if string.sub(pending.err, 1, 7) == 'NOGROUP' then return {'nogroup'} end
    return pending
  end
  if #pending == 0 then
    start = ''
    break
  end
  local ids, times = {}, {}
  for i, item in ipairs(pending) do
    ids[i] = item[1]
    times[item[1]] = item[4] + 1
  end
  local found = #entries
  for _, entry in ipairs(redis.call('XCLAIM', KEYS[2], 'workers', ARGV[6], 0, unpack(ids))) do
    if entry and entry[2] then
      entries[#entries + 1] = entry
      deliveries[#deliveries + 1] = times[entry[1]]
      local more, size = measured(entry[2])
      records, bytes = records - more, bytes - size
    end
  end
  deleted = deleted + #ids - (#entries - found)
  start = '(' .. ids[#ids]
until records <= 0 or bytes <= 0
if start == '' then
  -- Consumers of earlier owners, which have nothing pending any more.
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[2], 'workers')) do
    local seen = {}
    for i = 1, #consumer, 2 do seen[consumer[i]] = consumer[i + 1] end
    if seen['name'] ~= ARGV[6] and seen['pending'] == 0 then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[2], 'workers', seen['name'])
    end
  end
end
return {'ok', start, deleted, entries, deliveries}
