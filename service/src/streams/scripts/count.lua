-- Counts what serve processes appended and is neither applied nor here. ARGV: how many of theirs are applied, how many
-- processes appended that have no field any more, then per process that is known: name, how many it appended at least.
-- Answers {'ok', missing, entries in the stream, how far the counts had gone back, [what stood for each process], what
-- is said to be lost at most, for how many seconds at least the counts have stood here, [name and count of each process
-- that is not known], how many of the missing and applied nobody counted}.
local stop = fenced()
if stop then return stop end
local now, applied = tonumber(redis.call('TIME')[1]), tonumber(ARGV[5])
-- What is not here is not known to have been here before; and of what is, a server that was started anew, or took the place
-- of another, may have forgotten the newest. It has a new name then, as one that does not tell has none.
local told = redis.pcall('INFO', 'server', 'replication')
local info = type(told) == 'string' and told or ''
local server = (string.match(info, 'run_id:(%x+)') or '') .. ':' .. (string.match(info, 'master_replid:(%x+)') or '')
local seen = redis.call('HMGET', KEYS[1], 'server', 'since')
local since = seen[1] == server and #server > 1 and tonumber(seen[2]) or now
if since == now then redis.call('HSET', KEYS[1], 'server', server, 'since', now) end
local back, stood, known, strangers = 0, {}, {}, {}
for i = 7, #ARGV, 2 do
  local field, least = 'by:' .. ARGV[i], tonumber(ARGV[i + 1])
  local held = tonumber(redis.call('HGET', KEYS[1], field) or '0')
  known[field], stood[#stood + 1] = true, held
  if held < least then
    back = back + least - held
    redis.call('HSET', KEYS[1], field, ARGV[i + 1])
    redis.call('HDEL', KEYS[1], 'credit')
  end
end
local appended = tonumber(ARGV[6])
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 3) == 'by:' then
    appended = appended + tonumber(fields[i + 1])
    if not known[fields[i]] then
      strangers[#strangers + 1] = string.sub(fields[i], 4)
      strangers[#strangers + 1] = fields[i + 1]
    end
  end
end
-- More is applied than anyone counted: a process died before it told, and Redis forgot. Kept in mind, or it would hide as
-- many that are lost later; until a process tells of more than is counted here, for it may tell of these.
local credit = tonumber(redis.call('HGET', KEYS[1], 'credit') or '0')
if applied > appended + credit then
  credit = applied - appended
  redis.call('HSET', KEYS[1], 'credit', string.format('%.0f', credit))
end
local present = redis.call('XLEN', KEYS[2])
return {'ok', appended + credit - present - applied, present, back, stood,
  redis.call('HGET', KEYS[1], 'lostAtMost'), now - since, strangers, credit}
