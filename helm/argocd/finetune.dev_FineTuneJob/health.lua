-- Health of a FineTuneJob for Argo CD, from the conditions that kstatus reads.
local function health(status, message)
  return {status = status, message = message}
end

local status = obj.status
if status == nil or status.conditions == nil then
  return health("Progressing", "The operator has not seen this job yet.")
end
if status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "The operator has not seen the last change yet.")
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end
local function is_true(kind)
  return conditions[kind] ~= nil and conditions[kind].status == "True"
end

local message = status.message or ""
if status.reason ~= nil then
  message = status.reason .. ": " .. message
end
if is_true("Stalled") then
  return health("Degraded", message)
end
if is_true("Ready") and is_true("Complete") then
  return health("Healthy", message)
end
if is_true("Ready") and is_true("Suspended") then
  return health("Suspended", message)
end
if status.progress ~= nil and status.progress.display ~= nil and (status.phase == "Training" or status.phase == "Evaluating") then
  message = status.progress.display .. ", " .. message
end
return health("Progressing", message)
