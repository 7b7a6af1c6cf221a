-- Tests of charts/millrace/files/health.lua. Argument: the file. Argo CD runs it with the resource as the global `obj`.
local file = arg[1]
local failed = 0

local function condition(kind, status, reason, generation)
  return { type = kind, status = status, reason = reason, message = "m", observedGeneration = generation }
end

local function check(name, expected, spec, conditions)
  obj = { metadata = { generation = 2 }, spec = spec, status = conditions and { conditions = conditions } }
  local health = dofile(file)
  if health.status ~= expected or type(health.message) ~= "string" then
    print("!! " .. name .. ": expected " .. expected .. ", found " .. tostring(health.status))
    failed = failed + 1
  end
end

local ready = condition("Ready", "True", "ManifestActive", 2)
local older = condition("Ready", "True", "ManifestActive", 1)
local complete = condition("Progressing", "False", "Complete", 2)
local progressing = condition("Progressing", "True", "RollingOut", 2)
local as_expected = condition("Degraded", "False", "AsExpected", 2)
local degraded = condition("Degraded", "True", "SinkHalted", 2)
local stalled = condition("Stalled", "True", "QuotaExceeded", 2)

check("before an operator has looked", "Progressing", {}, nil)
check("without a condition", "Progressing", {}, {})
check("active", "Healthy", {}, { ready, complete, as_expected })
check("rolling out, the older generation active", "Progressing", {}, { older, progressing, as_expected })
check("changed a moment ago", "Progressing", {}, { older, condition("Progressing", "False", "Complete", 1), condition("Stalled", "True", "InvalidSpec", 1) })
check("active and degraded", "Degraded", {}, { ready, complete, degraded })
check("stalled while rolling out", "Degraded", {}, { older, progressing, degraded, stalled })
check("no status of a worker", "Progressing", {}, { condition("Ready", "Unknown", "StatusUnknown", 2), complete, as_expected })
check("stopped", "Suspended", { replicas = 0 }, { condition("Ready", "False", "Stopped", 2), condition("Progressing", "False", "Stopped", 2), as_expected })
check("paused", "Suspended", { paused = true }, { older, condition("Progressing", "False", "Paused", 1) })
check("draining", "Progressing", {}, { condition("Ready", "False", "Draining", 2), condition("Progressing", "True", "Draining", 2), as_expected })

os.exit(failed == 0 and 0 or 1)
