-- Removes the counts of producers that Postgres has folded into one sum. ARGV: their names.
local stop = fenced()
if stop then return stop end
for i = 6, #ARGV do redis.call('HDEL', KEYS[1], 'by:' .. ARGV[i]) end
return {'ok'}
