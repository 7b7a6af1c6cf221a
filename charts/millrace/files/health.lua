-- Health of a RecordPipeline for Argo CD; docs/kubernetes.md describes how to install it.
local health = { status = "Progressing", message = "no operator has looked at it yet" }

local found = {}
if obj.status ~= nil and obj.status.conditions ~= nil then
  for _, condition in ipairs(obj.status.conditions) do
    found[condition.type] = condition
  end
end

local function put(status, condition)
  health.status = status
  health.message = condition.reason .. ": " .. condition.message
  return health
end

-- Whether a condition is True of the present spec.
local function is_true(kind)
  local condition = found[kind]
  return condition ~= nil and condition.status == "True" and condition.observedGeneration == obj.metadata.generation
end

if obj.spec.paused then
  health.status = "Suspended"
  health.message = "spec.paused is true"
  return health
end
if is_true("Stalled") then
  return put("Degraded", found.Stalled)
end
if found.Progressing ~= nil and found.Progressing.observedGeneration == obj.metadata.generation then
  if found.Progressing.status == "True" then
    return put("Progressing", found.Progressing)
  end
  if found.Progressing.reason == "Stopped" then
    return put("Suspended", found.Progressing)
  end
  if is_true("Degraded") then
    return put("Degraded", found.Degraded)
  end
  if is_true("Ready") then
    return put("Healthy", found.Ready)
  end
end
if found.Ready ~= nil then
  health.message = found.Ready.reason .. ": " .. found.Ready.message
end
return health
