-- Makes stream and group where they are missing. ARGV: the id of the pipeline whose stream may be taken over, or ''.
-- Answers {'ok', 1 if the group was made, else 0, 1 if the stream was taken over, else 0, and the highest committed numbers
-- that stand beside the stream: of records, dead letters, conflicts}.
local adopted = 0
if ARGV[5] ~= '' and ARGV[5] ~= ARGV[1] and redis.call('HGET', KEYS[1], 'pipeline') == ARGV[5] then
  -- The entries go on to the new owner. The committed numbers are those of another log, and the fence of another's
  -- leases: whoever held it is refused by the id from now on.
  redis.call('HSET', KEYS[1], 'pipeline', ARGV[1])
  redis.call('HDEL', KEYS[1], 'epoch', 'token', 'records', 'deadLetters', 'conflicts', 'duplicates', 'lostAtMost',
    'credit')
  -- What was appended and is not here is of the other's books.
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(field, 1, 3) == 'by:' then redis.call('HDEL', KEYS[1], field) end
  end
  redis.call('HSET', KEYS[1], 'by:', redis.call('XLEN', KEYS[2]))
  adopted = 1
end
local stop = fenced()
if stop and stop[1] ~= 'raised' then return stop end
local made = redis.pcall('XGROUP', 'CREATE', KEYS[2], 'workers', '0', 'MKSTREAM')
if made.err then
  if string.sub(made.err, 1, 9) == 'BUSYGROUP' then
    return {'ok', 0, adopted, watermarks[1], watermarks[2], watermarks[3]}
  end
  return made
end
return {'ok', 1, adopted, watermarks[1], watermarks[2], watermarks[3]}
