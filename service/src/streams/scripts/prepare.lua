-- Creates stream and group where they are missing. ARGV: the id of the pipeline whose stream may be adopted, or ''.
-- Returns {'ok', 1 if the group was created, else 0, 1 if the stream was adopted, else 0, the watermarks as records, dead
-- letters, conflicts, and the acknowledged offset}.
local adopted = 0
if ARGV[6] ~= '' and ARGV[6] ~= ARGV[1] and redis.call('HGET', KEYS[1], 'pipeline') == ARGV[6] then
  -- The entries with their offsets belong to the new pipeline from now on. The watermarks and the lease are those of
  -- another log: its owners are refused by the id. Its producers are not this pipeline's.
  redis.call('HSET', KEYS[1], 'pipeline', ARGV[1])
  redis.call('HDEL', KEYS[1], 'epoch', 'token', 'records', 'deadLetters', 'conflicts')
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(field, 1, 3) == 'by:' then redis.call('HDEL', KEYS[1], field) end
  end
  adopted = 1
end
local stop = fenced()
if stop and stop[1] ~= 'raised' then return stop end
local made = redis.pcall('XGROUP', 'CREATE', KEYS[2], 'workers', '0', 'MKSTREAM')
local created = 1
if made.err then
  if string.sub(made.err, 1, 9) ~= 'BUSYGROUP' then return made end
  created = 0
end
return {'ok', created, adopted, watermarks[1], watermarks[2], watermarks[3], watermarks[4]}
