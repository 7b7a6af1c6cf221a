-- Acknowledges, keeps the highest committed numbers, trims. ARGV: records, dead letters, conflicts, duplicates, then ids.
-- Trims by what the group itself says: up to the lowest pending id, else just above the last delivered one.
-- Answers {'ok', entries left}, or {'raised'}, too, where ids were not pending.
local stop = fenced()
if stop then return stop end
local n, known = #ARGV, 0
for first = 9, n, 1000 do
  local acked = redis.pcall('XACK', KEYS[2], 'workers', unpack(ARGV, first, math.min(first + 999, n)))
  if type(acked) == 'table' and acked.err then return acked end
  known = known + acked
end
-- Ids that are not pending here: the server went back behind their delivery. They come again.
if known < n - 8 then return {'raised'} end
for i, field in ipairs({'records', 'deadLetters', 'conflicts'}) do
  if tonumber(ARGV[4 + i]) > watermarks[i] then redis.call('HSET', KEYS[1], field, ARGV[4 + i]) end
end
-- Without numbers that could be given twice: after a Postgres that went back there are fewer.
redis.call('HSET', KEYS[1], 'duplicates', ARGV[8])
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
      -- A number of more than 15 digits would round: such an id, which no server gives by itself, stays one round longer.
      if #seq <= 15 then seq = string.format('%.0f', tonumber(seq) + 1) end
      redis.call('XTRIM', KEYS[2], 'MINID', ms .. '-' .. seq)
    end
  end
end
if not found then return {'nogroup'} end
return {'ok', redis.call('XLEN', KEYS[2])}
