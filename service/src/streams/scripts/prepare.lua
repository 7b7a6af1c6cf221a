-- Makes stream and group where they are missing. Answers {'ok', 1 if the group was made, else 0}.
-- `read` counts entries ever delivered; a group made anew starts it at what was removed before.
local stop = fenced()
if stop and stop[1] ~= 'raised' then return stop end
local made = redis.pcall('XGROUP', 'CREATE', KEYS[2], 'workers', '0', 'MKSTREAM')
if made.err then
  if string.sub(made.err, 1, 9) == 'BUSYGROUP' then return {'ok', 0} end
  return made
end
local info = redis.call('XINFO', 'STREAM', KEYS[2])
local added = 0
for i = 1, #info, 2 do if info[i] == 'entries-added' then added = info[i + 1] end end
redis.call('HSET', KEYS[1], 'read', added - redis.call('XLEN', KEYS[2]))
return {'ok', 1}
