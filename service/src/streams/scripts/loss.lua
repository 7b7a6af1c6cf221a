-- Notes entries that were lost as read, so that they are counted once. ARGV: how many.
-- A count that is gone is not begun here: reading begins it anew where nothing is missing.
-- Answers {'ok'}.
local stop = fenced()
if stop then return stop end
if redis.call('HEXISTS', KEYS[1], 'read') == 1 then redis.call('HINCRBY', KEYS[1], 'read', ARGV[4]) end
return {'ok'}
