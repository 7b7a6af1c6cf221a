#!lua
-- Appends the records of one shard as entries, all or none, and numbers them. Without `allow-oom`: a full Redis refuses it
-- before the first write.
-- KEYS: stream, the hash beside it. ARGV: pipeline id, backlog limit in records, name of the producer, number of records
-- that it is known to have appended, format, number of all records, then per entry: number of its records, value.
-- Returns {'ok', number of records that the producer has appended, number of all that were appended, number of those that
-- are acknowledged, ids...}, {'backlog', number of records that there is
-- room for}, {'refused'}, {'exhausted'}, or {'part'}.
local stream, beside = KEYS[1], KEYS[2]
local pipeline, limit, producer, known = ARGV[1], tonumber(ARGV[2]), 'by:' .. ARGV[3], tonumber(ARGV[4])
local count = tonumber(ARGV[6])
local held = redis.call('HMGET', beside, 'pipeline', 'appended', 'acknowledged', producer)
if held[1] and held[1] ~= pipeline then return {'refused'} end
local appended, acknowledged, mine = tonumber(held[2] or '0'), tonumber(held[3] or '0'), tonumber(held[4] or '0')
if known > mine then
  -- Redis was rewound: it lost records of this producer, whose offsets are not given again.
  appended = appended + known - mine
  mine = known
end
-- An empty stream has no backlog, whatever the counters hold.
local room = limit - math.max(0, appended - acknowledged)
if room < count and redis.call('XLEN', stream) == 0 then room = limit end
if room < count then return {'backlog', math.max(0, room)} end
local reply = {'ok', 0, 0, 0}
local first, last = appended, '18446744073709551615-18446744073709551615'
for at = 7, #ARGV, 2 do
  local upto = appended + tonumber(ARGV[at])
  local offsets = string.format('%.0f-%.0f', appended + 1, upto)
  local id = redis.pcall('XADD', stream, '*', 'format', ARGV[5], 'offsets', offsets, 'records', ARGV[at + 1])
  if type(id) == 'table' and id.err then
    if appended > first then
      reply = {'part'}
      break
    end
    local about = redis.pcall('XINFO', 'STREAM', stream)
    for k = 1, #about, 2 do
      if about[k] == 'last-generated-id' and about[k + 1] == last then return {'exhausted'} end
    end
    -- Versions before 7.2 do not name the command.
    if string.find(id.err, 'user executing the script', 1, true) then
      return redis.error_reply(id.err .. ': XADD ' .. stream)
    end
    return id
  end
  reply[#reply + 1] = id
  appended = upto
end
mine = mine + appended - first
local total, own = string.format('%.0f', appended), string.format('%.0f', mine)
redis.call('HSET', beside, 'appended', total, producer, own)
if not held[1] then redis.call('HSET', beside, 'pipeline', pipeline) end
if reply[1] == 'ok' then reply[2], reply[3], reply[4] = own, total, held[3] or '0' end
return reply
