-- Makes stream and group where they are missing. ARGV: the id of the pipeline whose stream may be taken over, or ''.
-- Answers {'ok', 1 if the group was made, else 0, 1 if the stream was taken over, else 0}.
-- `read` counts entries ever delivered; a group made anew starts it at what was removed before.
local adopted = 0
if ARGV[4] ~= '' and ARGV[4] ~= ARGV[1] and redis.call('HGET', KEYS[1], 'pipeline') == ARGV[4] then
  -- The entries go on to the new owner. The committed numbers are those of another log, and the fence of another's
  -- leases: whoever held it is refused by the id from now on.
  redis.call('HSET', KEYS[1], 'pipeline', ARGV[1])
  redis.call('HDEL', KEYS[1], 'epoch', 'token', 'records', 'deadLetters', 'conflicts', 'duplicates')
  adopted = 1
end
local stop = fenced()
if stop and stop[1] ~= 'raised' then return stop end
local made = redis.pcall('XGROUP', 'CREATE', KEYS[2], 'workers', '0', 'MKSTREAM')
if made.err then
  if string.sub(made.err, 1, 9) == 'BUSYGROUP' then return {'ok', 0, adopted} end
  return made
end
local info = redis.call('XINFO', 'STREAM', KEYS[2])
local added = 0
for i = 1, #info, 2 do if info[i] == 'entries-added' then added = info[i + 1] end end
redis.call('HSET', KEYS[1], 'read', added - redis.call('XLEN', KEYS[2]))
return {'ok', 1, adopted}
