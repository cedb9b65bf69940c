// The operator's page: tables of what the server says every two seconds, and charts of its last day.

import { chart } from "./charts.js"
import { Table, element } from "./tables.js"

const EVERY_MS = 2000
const CHARTS_EVERY_MS = 60000
const BASE = location.pathname.replace(/\/operator\/?$/, "")

const byId = id => document.getElementById(id)

async function ask(path, options = {}) {
  const answer = await fetch(BASE + path, { ...options, headers: { "X-Comfy-Dialect": "contract", ...options.headers } })
  if (answer.status === 401) location.href = BASE + "/login"
  const body = await answer.json()
  if (!answer.ok) throw new Error(body.error?.message ?? body.detail ?? `${answer.status} from ${path}`)
  return body
}

const post = (path, body = {}) =>
  ask(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } })

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`
  return `${(seconds / 3600).toFixed(1)} h`
}

const gigabytes = megabytes => (megabytes / 1024).toFixed(1)

function bytes(count) {
  const [unit, size] = [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]].find(([, size]) => count >= size) ?? ["B", 1]
  return `${size === 1 ? count : (count / size).toFixed(1)} ${unit}`
}

const code = (text, title) => element("code", text, { title })

function button(text, act) {
  const made = element("button", text, { type: "button" })
  made.onclick = () => act().then(refresh, report)
  return made
}

function report(error) {
  byId("trouble").textContent = error.message
  byId("trouble").hidden = false
}

function progress(job) {
  const at = job.progress
  const made = element("div")
  if (job.state === "pending" || at === null) return made
  made.append(element("progress", "", { max: 100, value: at.percent }))
  const left = at.left_s === null ? "" : `, about ${duration(at.left_s)} left`
  const step = at.text ? `: ${at.text}` : at.steps ? `, step ${at.step} of ${at.steps}${left}` : ""
  made.append(element("div", `${at.class_type ?? ""}${step}`))
  if (at.preview) {
    const source = `${BASE}/operator/jobs/${encodeURIComponent(job.job_id)}/preview?${at.preview}`
    made.append(element("img", "", { class: "preview", src: source, alt: "" }))
  }
  return made
}

function reason(job, status) {
  if (job.state === "running") return ""
  const place = job.progress?.position
  const paused = status.paused.map(pause => `${pause.kind} ${pause.name}`.trim())
  if (paused.length) return `paused: ${paused.join(", ")}`
  const backoff = status.backoffs.find(one => one.tenant === job.tenant && one.wait_s > 0)
  if (backoff) return `its owner waits ${duration(backoff.wait_s)}: jobs of it ended replicas`
  if (status.load.pools.some(pool => pool.waiting > 0 && pool.replicas === 0)) return "a pool has no replica"
  return place ? `place ${place}${job.wait_s === null ? "" : `, about ${duration(job.wait_s)}`}` : ""
}

const jobsTable = new Table("jobs", job => job.job_id, [
  { title: "job", value: job => job.job_id, show: job => code(job.job_id.split("@")[0].slice(0, 8), job.job_id) },
  { title: "owner", value: job => job.tenant || job.client_id?.slice(0, 8) || "–" },
  { title: "workflow", value: job => job.name || `${job.nodes} nodes` },
  { title: "model", value: job => job.model || "–" },
  { title: "state", value: job => job.state },
  { title: "progress", value: job => JSON.stringify([job.state, job.progress]), show: progress, sortable: false },
  { title: "why it waits", value: job => job.why },
  { title: "age", value: job => Math.round(job.age_s), show: job => element("span", duration(job.age_s)), number: true },
  { title: "", value: () => "Cancel", show: job => button("Cancel", () => post(`/jobs/${encodeURIComponent(job.job_id)}/cancel`)) },
], "nothing runs and nothing waits")

function showJobs(found, status) {
  const now = Date.now() / 1000
  const more = found.running + found.pending - found.jobs.length
  byId("more-jobs").textContent = `and ${more} more`
  byId("more-jobs").hidden = more <= 0
  return jobsTable.show(found.jobs.map(job => ({ ...job, why: reason(job, status), age_s: now - job.created_s })))
}

const poolsTable = new Table("pools", pool => pool.pool, [
  { title: "pool", value: pool => pool.pool },
  { title: "replicas", value: pool => pool.replicas, number: true },
  { title: "running", value: pool => pool.running, number: true },
  { title: "waiting", value: pool => pool.waiting, number: true },
  { title: "work that waits", value: pool => Math.round(pool.waiting_s), show: pool => element("span", duration(pool.waiting_s)), number: true },
], "no pool")

const replicasTable = new Table("replicas", replica => replica.replica_id, [
  { title: "replica", value: replica => replica.replica_id, show: replica => code(replica.replica_id.slice(0, 12), replica.replica_id) },
  { title: "pool", value: replica => replica.pool },
  { title: "host", value: replica => replica.host },
  { title: "tasks", value: replica => `${replica.running} of ${replica.slots}` },
  { title: "holds", value: replica => replica.recipes.join(", ") || "no model" },
  { title: "notes", value: replica => replica.said },
  { title: "", value: replica => replica.drain, show: replica => drainButton("replica", replica.replica_id, replica.drain) },
], "no replica")

const hostsTable = new Table("hosts", host => host.host, [
  { title: "host", value: host => host.host },
  { title: "memory, GB", value: host => `${gigabytes(host.ram_available_mb)} of ${gigabytes(host.ram_total_mb)} free` },
  { title: "GPUs", value: host => host.gpus.map(gpu =>
    `${gpu.name}: ${gigabytes(gpu.vram_free_mb)} of ${gigabytes(gpu.vram_total_mb)} GB free`).join("; ") || "none" },
  { title: "", value: host => host.drain, show: host => host.drain ? drainButton("host", host.host, host.drain) : element("span") },
], "no host")

function showStatus(status) {
  const { load } = status
  const tenants = status.paused.map(pause => `${pause.kind} ${pause.name}`.trim())
  byId("summary").textContent = [
    `${load.running} running, ${load.queued} waiting`,
    ...(load.oldest_s >= 1 ? [`the oldest for ${duration(load.oldest_s)}`] : []),
    `up for ${duration(status.uptime_s)}`,
    ...(tenants.length ? [`paused: ${tenants.join(", ")}`] : []),
  ].join(" · ")
  const whole = status.paused.some(pause => pause.kind === "queue")
  byId("pause").textContent = whole ? "Resume the queue" : "Pause the queue"
  byId("pause").onclick = () => post(whole ? "/resume" : "/pause").then(refresh, report)
  byId("pause").hidden = byId("cancel-all").hidden = false
  fillChoices("pool-names", load.pools.map(pool => pool.pool))
  const troubles = new Map(status.troubles.map(one => [one.replica_id, one.why]))
  const drain = (kind, name) => status.drained.some(one => one.kind === kind && one.name === name) ? "Undo drain" : "Drain"
  const replicas = status.replicas.map(replica => ({
    ...replica,
    drain: drain("replica", replica.replica_id),
    said: [
      troubles.get(replica.replica_id) && `cannot work: ${troubles.get(replica.replica_id)}`,
      replica.quarantined && "kept for one job alone",
      replica.draining && "takes no more tasks",
      replica.drained && (replica.running ? "drains" : "drained"),
      ...replica.notes,
    ].filter(Boolean).join("; "),
  }))
  const working = new Set(status.replicas.map(replica => replica.host))
  const hosts = status.hosts.map(host => ({ ...host, drain: working.has(host.host) ? drain("host", host.host) : "" }))
  return Promise.all([poolsTable.show(load.pools), replicasTable.show(replicas), hostsTable.show(hosts)])
}

function drainButton(kind, name, label) {
  return button(label, () => post(label === "Drain" ? "/drain" : "/undrain", { [kind]: name }))
}

const ENDED = [
  { name: "success", label: "succeeded", color: "good" },
  { name: "error", label: "failed", color: "bad" },
  { name: "cancelled", label: "cancelled", color: "gone" },
]
const MEANS = [
  { name: "wait_s", label: "wait", color: "bar", line: true },
  { name: "run_s", label: "duration", color: "good", line: true },
]
const WHOLE = count => Number.isInteger(count) ? String(count) : ""

const useTable = new Table("use", use => `${use.day} ${use.tenant}`, [
  { title: "day", value: use => use.day },
  { title: "tenant", value: use => use.tenant || "(operator)" },
  { title: "jobs", value: use => use.jobs, number: true },
  { title: "GPU-seconds", value: use => Number(use.gpu_s.toFixed(1)), number: true },
  { title: "saved", value: use => use.saved_bytes, show: use => element("span", bytes(use.saved_bytes)), number: true },
], "no job has ended in this time")

const tenantsTable = new Table("tenants", one => one.tenant, [
  { title: "tenant", value: one => one.tenant || "(operator)" },
  { title: "keys", value: one => one.keys, number: true },
  { title: "waiting", value: one => one.jobs.queued ?? 0, number: true },
  { title: "running", value: one => one.jobs.running ?? 0, number: true },
  { title: "GPU-seconds today", value: one => Number(one.gpu_s_today.toFixed(1)), number: true },
  { title: "stored", value: one => one.bytes_stored, show: one => element("span", bytes(one.bytes_stored)), number: true },
  { title: "", value: one => one.pause, show: pauseButton },
], "no tenant yet")

const keysTable = new Table("keys", key => key.key_id, [
  { title: "key", value: key => key.shown, show: key => element("code", key.shown) },
  { title: "tenant", value: key => key.tenant || "(operator)" },
  { title: "name", value: key => key.name },
  { title: "allows", value: key => key.scopes.join(", ") },
  { title: "made", value: key => new Date(key.created_s * 1000).toLocaleDateString() },
  { title: "holds until", value: key => key.ends_s === null ? "it is revoked" : new Date(key.ends_s * 1000).toLocaleString() },
  { title: "", value: () => "", show: keyButtons },
], "no key")

function pauseButton(one) {
  if (!one.tenant) return element("span")
  return button(one.pause, () => post(one.pause === "Pause" ? "/pause" : "/resume", { tenant: one.tenant }).then(refreshTenants))
}

async function refreshCharts() {
  const [activity, { days }] = await Promise.all([ask("/operator/activity"), ask("/operator/use")])
  const place = byId("charts")
  chart(place, "jobs that ended", activity, ENDED, WHOLE)
  chart(place, "errors", activity, [ENDED[1]], WHOLE)
  chart(place, "mean wait and duration", activity, MEANS, duration)
  await useTable.show(days.reverse())
  await refreshTenants()
}

async function refreshTenants() {
  let tenants
  try {
    tenants = (await ask("/tenants")).tenants
  } catch {
    return // A server without tenants has no such route.
  }
  byId("tenants-section").hidden = false
  const { paused } = await ask("/status")
  const pauses = new Set(paused.filter(pause => pause.kind === "tenant").map(pause => pause.name))
  await tenantsTable.show(tenants.map(one => ({ ...one, pause: pauses.has(one.tenant) ? "Resume" : "Pause" })))
  await refreshKeys(tenants)
}

async function refreshKeys(tenants) {
  const { keys } = await ask("/tenants/keys")
  const names = [...new Set([...tenants, ...keys].map(one => one.tenant))].filter(Boolean).sort()
  fillChoices("tenant-names", names)
  await keysTable.show(keys.filter(key => key.ends_s === null || key.ends_s > Date.now() / 1000))
}

function keyButtons(key) {
  const path = `/tenants/keys/${key.key_id}`
  const buttons = element("span")
  buttons.append(
    button("Rotate", () => post(`${path}/rotate`).then(showKey)),
    button("Revoke", async () => {
      if (!confirm(`Revoke ${key.shown}? Whoever uses it is refused within seconds.`)) return
      await post(`${path}/revoke`)
      await refreshTenants()
    }),
  )
  return buttons
}

// A key is shown once: the server has its hash alone.
async function showKey({ key }) {
  byId("new-key").replaceChildren("The new key, shown this once: ", element("code", key))
  byId("new-key").hidden = false
  await refreshTenants()
}

function fillChoices(id, values) {
  byId(id).replaceChildren(...values.map(value => element("option", "", { value })))
}

byId("make-key").onsubmit = event => {
  event.preventDefault()
  const form = new FormData(event.target)
  const body = { tenant: form.get("tenant"), name: form.get("name"), scopes: form.getAll("scopes") }
  post("/tenants/keys", body).then(showKey).catch(report)
}

// The folders whose files are models by themselves: text encoders need a type, which the command line takes.
const WARMED = ["checkpoints", "diffusion_models", "unet_gguf", "vae"]

async function refreshModels() {
  const catalog = await ask("/catalog")
  fillChoices("model-names", WARMED.flatMap(folder => (catalog[folder] ?? []).map(name => `${folder}/${name}`)))
}

byId("warm").onsubmit = event => {
  event.preventDefault()
  const form = new FormData(event.target)
  const pool = form.get("pool")
  post("/warm", { models: [form.get("model")], ...(pool ? { pool } : {}) }).then(({ replicas }) => {
    byId("warmed").textContent = replicas.length ? `loads in ${replicas.join(", ")}` : "no replica has models"
    return refresh()
  }).catch(report)
}

async function refresh() {
  const [status, jobs] = await Promise.all([ask("/status"), ask("/operator/jobs")])
  byId("trouble").hidden = true
  await Promise.all([showStatus(status), showJobs(jobs, status)])
}

byId("cancel-all").onclick = async () => {
  if (!confirm("Cancel every job that runs or waits?")) return
  const { jobs } = await ask("/operator/jobs")
  await Promise.all(jobs.map(job => post(`/jobs/${encodeURIComponent(job.job_id)}/cancel`))).then(refresh, report)
}

async function keepOn(work, everyMs) {
  for (;;) {
    if (!document.hidden) await work().catch(report)
    await new Promise(resolve => setTimeout(resolve, everyMs))
  }
}

keepOn(refresh, EVERY_MS)
keepOn(refreshCharts, CHARTS_EVERY_MS)
keepOn(refreshModels, CHARTS_EVERY_MS)
