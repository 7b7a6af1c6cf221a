-- Acknowledges entries, stores the watermarks, and trims the stream. It trims by the state of the group: all below the
-- lowest pending id, or, if none is pending, all up to the last delivered one.
-- ARGV: the watermarks as records, dead letters, conflicts, the offset up to which records are applied or lost, then ids.
-- Returns {'ok', number of records that wait}, or {'raised'}, also where ids were not pending.
local stop = fenced()
if stop then return stop end
local n, known = #ARGV, 0
for first = 10, n, 1000 do
  local acked = redis.pcall('XACK', KEYS[2], 'workers', unpack(ARGV, first, math.min(first + 999, n)))
  if type(acked) == 'table' and acked.err then return acked end
  known = known + acked
end
-- Ids that are not pending: the server was rewound to before their delivery. They are delivered again.
if known < n - 9 then return {'raised'} end
for i, field in ipairs({'records', 'deadLetters', 'conflicts'}) do
  if tonumber(ARGV[5 + i]) > watermarks[i] then redis.call('HSET', KEYS[1], field, ARGV[5 + i]) end
end
redis.call('HSET', KEYS[1], 'acknowledged', ARGV[9])
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[2])
if groups.err then return {'nogroup'} end
local found = false
for _, group in ipairs(groups) do
  local seen = {}
  for i = 1, #group, 2 do seen[group[i]] = group[i + 1] end
  if seen['name'] == 'workers' then
    found = true
    if seen['pending'] > 0 then
      redis.call('XTRIM', KEYS[2], 'MINID', redis.call('XPENDING', KEYS[2], 'workers')[2])
    else
      local ms, seq = string.match(seen['last-delivered-id'], '^(%d+)-(%d+)$')
      -- A number of more than 15 digits would round: such an id, which no server gives, stays until the next trim.
      if #seq <= 15 then seq = string.format('%.0f', tonumber(seq) + 1) end
      redis.call('XTRIM', KEYS[2], 'MINID', ms .. '-' .. seq)
    end
  end
end
if not found then return {'nogroup'} end
if redis.call('XLEN', KEYS[2]) == 0 then return {'ok', 0} end
return {'ok', math.max(0, tonumber(redis.call('HGET', KEYS[1], 'appended') or '0') - tonumber(ARGV[9]))}
