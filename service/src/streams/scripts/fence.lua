-- The head of every script that acts on a shard for its owner.
-- KEYS: fence, stream. ARGV: pipeline id, epoch, token, the watermarks that the owner has read or written as
-- "records deadLetters conflicts", the acknowledged offset that it has read or written, then the arguments of the script.
-- Returns nil when the caller has set the fence, else the reply for the caller: {'fenced', epoch}, {'refused', pipeline
-- id}, or {'raised'}. 'raised': the fence was lower (a new owner, or a rewound server) and is set now, or the
-- watermarks are lower (a server that was rewound by less). Nothing else was done, because the caller must first reclaim
-- pending entries.
-- Sets `watermarks`: the highest acknowledged numbers of records, dead letters and conflicts, and the acknowledged offset.
local watermarks
local function fenced()
  local held = redis.call('HMGET', KEYS[1], 'pipeline', 'epoch', 'token', 'records', 'deadLetters', 'conflicts',
    'acknowledged')
  watermarks = {tonumber(held[4] or '0'), tonumber(held[5] or '0'), tonumber(held[6] or '0'), tonumber(held[7] or '0')}
  if held[1] and held[1] ~= ARGV[1] then return {'refused', held[1]} end
  local there, mine = tonumber(held[2] or '0'), tonumber(ARGV[2])
  if there > mine or (there == mine and held[3] ~= ARGV[3]) then return {'fenced', there} end
  if there < mine then
    redis.call('HSET', KEYS[1], 'pipeline', ARGV[1], 'epoch', ARGV[2], 'token', ARGV[3])
    return {'raised'}
  end
  local index = 0
  for known in string.gmatch(ARGV[4], '%d+') do
    index = index + 1
    if watermarks[index] < tonumber(known) then return {'raised'} end
  end
  if watermarks[4] ~= tonumber(ARGV[5]) then return {'raised'} end
  return nil
end
