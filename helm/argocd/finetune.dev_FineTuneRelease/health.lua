-- Health of a FineTuneRelease for Argo CD, from the conditions that kstatus reads.
local function health(status, message)
  return {status = status, message = message}
end

local status = obj.status
if status == nil or status.conditions == nil then
  return health("Progressing", "The operator has not seen this release yet.")
end
if status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "The operator has not seen the last change yet.")
end

local message = (status.reason or "") .. ": " .. (status.message or "")
for _, condition in ipairs(status.conditions) do
  if condition.type == "Stalled" and condition.status == "True" then
    return health("Degraded", message)
  end
  if condition.type == "Ready" and condition.status == "True" then
    return health("Healthy", message)
  end
end
return health("Progressing", message)
