#!lua flags=allow-oom
-- Removes a stream and the key beside it, if both belong to the pipeline. KEYS: key beside, stream. ARGV: pipeline id,
-- sink or '' for an input stream, the id of another pipeline whose stream may be removed as well or ''.
-- Returns {'ok', number of removed entries}, {'other', pipeline id}, or {'unknown'}: the owner of a sink's stream is
-- unknown.
local held = redis.call('HMGET', KEYS[1], 'pipeline', 'sink')
if held[1] and held[1] ~= ARGV[1] and held[1] ~= ARGV[3] then return {'other', held[1]} end
if ARGV[2] ~= '' and (not held[1] or held[2] ~= ARGV[2]) then return {'unknown'} end
local entries = redis.call('XLEN', KEYS[2])
redis.call('UNLINK', KEYS[1], KEYS[2])
return {'ok', entries}
