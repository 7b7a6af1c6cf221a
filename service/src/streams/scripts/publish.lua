#!lua
-- Appends a sink's entries and moves its cursor, if the cursor is at the position that the publisher expects.
-- KEYS: cursor, stream. ARGV: pipeline id, sink, generation, shard, expected and new position, maxLength (0: none),
-- overflow, source, type, then per entry: number, id, time, traceparent or '', data.
-- Returns {'ok', cursor, number of entries trimmed unread}, {'full', cursor, group or ''}, {'moved', cursor}, or
-- {'gone'}.
local pipeline, sink, cursor_generation, shard, expected, new = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local most, overflow = tonumber(ARGV[7]), ARGV[8]
local held = redis.call('HMGET', KEYS[1], 'pipeline', 'sink', 'cursor_generation', 'retired', shard)
if held[1] ~= pipeline or held[2] ~= sink or held[3] ~= cursor_generation or held[4] or not held[5] then return {'gone'} end
if held[5] ~= expected then return {'moved', held[5]} end

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function below(a, b)
  local am, as = parts(a)
  local bm, bs = parts(b)
  return am < bm or (am == bm and as < bs)
end

-- Returns the lowest id that a group has not acknowledged, and that group; '0-0' and '' if there is no group.
local function unread()
  local lowest, who = nil, ''
  local groups = redis.call('XINFO', 'GROUPS', KEYS[2])
  for _, group in ipairs(groups) do
    local seen = {}
    for i = 1, #group, 2 do seen[group[i]] = group[i + 1] end
    local id
    if seen['pending'] > 0 then
      id = redis.call('XPENDING', KEYS[2], seen['name'])[2]
    else
      local ms, seq = string.match(seen['last-delivered-id'], '^(%d+)-(%d+)$')
      id = ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
    end
    if not lowest or below(id, lowest) then lowest, who = id, seen['name'] end
  end
  return lowest or '0-0', who
end

local count = (#ARGV - 10) / 5
local room, who, lost = count, '', 0
if most > 0 then
  local over = redis.call('XLEN', KEYS[2]) + count - most
  if over > 0 then
    -- A missing stream has no group, and XINFO would fail.
    local boundary = '0-0'
    if redis.call('EXISTS', KEYS[2]) == 1 then boundary, who = unread() end
    if overflow == 'Wait' then
      -- Trims only entries that every group has acknowledged: whole nodes first, then single entries.
      redis.call('XTRIM', KEYS[2], 'MINID', '~', boundary, 'LIMIT', over)
      if redis.call('XLEN', KEYS[2]) + count > most then redis.call('XTRIM', KEYS[2], 'MINID', boundary) end
      room = math.max(0, math.min(count, most - redis.call('XLEN', KEYS[2])))
    else
      -- Counts the trimmed entries that not every group has acknowledged, or all if there is no group. No group has
      -- read the entries that this call appends.
      local length = redis.call('XLEN', KEYS[2])
      lost = math.max(0, over - length)
      over = math.min(over, length)
      for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', over)) do
        if not below(entry[1], boundary) then lost = lost + 1 end
      end
    end
  end
end
-- The entries of one number come together: the cursor moves over all of them at once.
while room > 0 and room < count and ARGV[6 + room * 5] == ARGV[11 + room * 5] do room = room - 1 end
local call, key, source, kind, cursor = redis.call, KEYS[2], ARGV[9], ARGV[10], expected
for at = 11, 10 + room * 5, 5 do
  -- Without a table of the fields: this is the cost of publishing.
  local trace = ARGV[at + 3]
  if trace == '' then
    call('XADD', key, '*', 'id', ARGV[at + 1], 'source', source, 'type', kind, 'time', ARGV[at + 2], 'version', '1',
      'data', ARGV[at + 4])
  else
    call('XADD', key, '*', 'id', ARGV[at + 1], 'source', source, 'type', kind, 'time', ARGV[at + 2], 'version', '1',
      'traceparent', trace, 'data', ARGV[at + 4])
  end
  cursor = ARGV[at]
end
if most > 0 and overflow == 'Trim' and redis.call('XLEN', KEYS[2]) > most then
  redis.call('XTRIM', KEYS[2], 'MAXLEN', most)
end
if lost > 0 then redis.call('HINCRBY', KEYS[1], 'unreadLost', lost) end
if room == count then cursor = new end
if cursor ~= expected then redis.call('HSET', KEYS[1], shard, cursor) end
if room < count then return {'full', cursor, who} end
return {'ok', cursor, lost}
