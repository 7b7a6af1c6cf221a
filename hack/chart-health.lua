-- Tests of charts/millrace/files/health.lua. Argument: the file. Argo CD runs it with the resource as the global `obj`.
local file = arg[1]
local failed = 0

local function condition(kind, status, reason, generation)
  return { type = kind, status = status, reason = reason, message = "m", observedGeneration = generation }
end

local function check(what, expected, spec, conditions)
  obj = { metadata = { generation = 2 }, spec = spec, status = conditions and { conditions = conditions } }
  local health = dofile(file)
  if health.status ~= expected or type(health.message) ~= "string" then
    print("!! " .. what .. ": expected " .. expected .. ", found " .. tostring(health.status))
    failed = failed + 1
  end
end

local ready = condition("Ready", "True", "ManifestActive", 2)
local older = condition("Ready", "True", "ManifestActive", 1)
local complete = condition("Progressing", "False", "Complete", 2)
local goes = condition("Progressing", "True", "RollingOut", 2)
local well = condition("Degraded", "False", "AsExpected", 2)
local ill = condition("Degraded", "True", "SinkHalted", 2)
local stalled = condition("Stalled", "True", "QuotaExceeded", 2)

check("before an operator has looked", "Progressing", {}, nil)
check("without a condition", "Progressing", {}, {})
check("in force", "Healthy", {}, { ready, complete, well })
check("on its way, the older generation in force", "Progressing", {}, { older, goes, well })
check("changed a moment ago", "Progressing", {}, { older, condition("Progressing", "False", "Complete", 1), condition("Stalled", "True", "InvalidSpec", 1) })
check("in force, and something is wrong", "Degraded", {}, { ready, complete, ill })
check("stalled on its way", "Degraded", {}, { older, goes, ill, stalled })
check("no worker known", "Progressing", {}, { condition("Ready", "Unknown", "StatusUnknown", 2), complete, well })
check("stopped", "Suspended", { replicas = 0 }, { condition("Ready", "False", "Stopped", 2), condition("Progressing", "False", "Stopped", 2), well })
check("paused", "Suspended", { paused = true }, { older, condition("Progressing", "False", "Paused", 1) })
check("draining", "Progressing", {}, { condition("Ready", "False", "Draining", 2), condition("Progressing", "True", "Draining", 2), well })

os.exit(failed == 0 and 0 or 1)
