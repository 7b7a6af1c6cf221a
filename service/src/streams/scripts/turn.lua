-- Acknowledges entries, where there are arguments for it, and then reads new ones, where a consumer is given: in one step,
-- because an owner whose batch is applied wants the next one.
-- ARGV: consumer or '', records, bytes; then, to acknowledge: the watermarks as records, dead letters, conflicts, the offset
-- up to which records are applied or lost, ids.
-- Returns {'ok', where a consumer is given: entries as [id, fields]..., and without an entry: last delivered id, offset of
-- the last appended record, number of pending entries}, or {'raised'}, also where ids were not pending; then nothing is read.

-- The fields of the group.
local seen

-- Reads them. Returns nil where the group is missing.
local function group()
  local groups = redis.pcall('XINFO', 'GROUPS', KEYS[2])
  if groups.err then return nil end
  for _, group in ipairs(groups) do
    local fields = {}
    for i = 1, #group, 2 do fields[group[i]] = group[i + 1] end
    if fields['name'] == 'workers' then return fields end
  end
end

-- Acknowledges, stores the watermarks, and trims the stream. It trims by the state of the group: all below the lowest
-- pending id, or, if none is pending, all up to the last delivered one.
-- Returns a reply that ends the script, or nil.
local function acknowledge()
  local n, known = #ARGV, 0
  for first = 13, n, 1000 do
    local acked = redis.pcall('XACK', KEYS[2], 'workers', unpack(ARGV, first, math.min(first + 999, n)))
    if type(acked) == 'table' and acked.err then return acked end
    known = known + acked
  end
  -- Ids that are not pending: the server was rewound to before their delivery. They are delivered again.
  if known < n - 12 then return {'raised'} end
  local fields = {'acknowledged', ARGV[12]}
  for i, field in ipairs({'records', 'deadLetters', 'conflicts'}) do
    if tonumber(ARGV[8 + i]) > watermarks[i] then
      fields[#fields + 1] = field
      fields[#fields + 1] = ARGV[8 + i]
    end
  end
  redis.call('HSET', KEYS[1], unpack(fields))
  seen = group()
  if not seen then return {'nogroup'} end
  if seen['pending'] > 0 then
    redis.call('XTRIM', KEYS[2], 'MINID', redis.call('XPENDING', KEYS[2], 'workers')[2])
  else
    local ms, seq = string.match(seen['last-delivered-id'], '^(%d+)-(%d+)$')
    -- A number of more than 15 digits would round: such an id, which no server gives, stays until the next trim.
    if #seq <= 15 then seq = string.format('%.0f', tonumber(seq) + 1) end
    redis.call('XTRIM', KEYS[2], 'MINID', ms .. '-' .. seq)
  end
end

-- Reads new entries for the group, in steps, until they have enough records or bytes.
-- Returns a reply that ends the script or nil, and the entries.
local function read()
  local records, bytes, entries = tonumber(ARGV[7]), tonumber(ARGV[8]), {}
  local reply, step
  repeat
    step = math.min(next_step(#entries, tonumber(ARGV[8]) - bytes), records)
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
  return nil, entries
end

local stop, entries
stop = fenced() or (ARGV[9] and acknowledge())
if stop then return stop end
if ARGV[6] == '' then return {'ok'} end
stop, entries = read()
if stop then return stop end
if #entries > 0 then return {'ok', entries} end
-- Nothing was read since the acknowledgement.
seen = seen or group() or {}
return {'ok', entries, seen['last-delivered-id'] or '0-0',
  redis.call('HGET', KEYS[1], 'appended') or '0', seen['pending'] or 0}
