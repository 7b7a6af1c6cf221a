-- Keeps beside the stream how many entries were lost at most. ARGV: the number, or '' where it is not known.
local stop = fenced()
if stop then return stop end
if redis.call('HGET', KEYS[1], 'lostAtMost') ~= ARGV[5] then redis.call('HSET', KEYS[1], 'lostAtMost', ARGV[5]) end
return {'ok'}
