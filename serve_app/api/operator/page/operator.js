// The operator's page: tables of what the server says every two seconds, and charts of its last day.

const EVERY_MS = 2000
const CHARTS_EVERY_MS = 60000
const DAY_S = 86400
const SVG = "http://www.w3.org/2000/svg"
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

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name)
  made.textContent = text
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
  return made
}

// columns: [title, row => text or node, whether it is a number]
function fill(id, columns, rows, empty) {
  const head = element("tr")
  for (const [title, , number] of columns) head.append(element("th", title, number ? { class: "number" } : {}))
  const body = rows.map(row => {
    const line = element("tr")
    for (const [, show, number] of columns) {
      const cell = element("td", "", number ? { class: "number" } : {})
      cell.append(show(row) ?? "")
      line.append(cell)
    }
    return line
  })
  if (!rows.length) {
    const line = element("tr")
    line.append(element("td", empty, { class: "empty", colspan: columns.length }))
    body.push(line)
  }
  const [top, rest] = [element("thead"), element("tbody")]
  top.append(head)
  rest.append(...body)
  byId(id).replaceChildren(top, rest)
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`
  return `${(seconds / 3600).toFixed(1)} h`
}

const gigabytes = megabytes => (megabytes / 1024).toFixed(1)

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
  if (job.state === "pending" || at === null) return ""
  const made = element("div")
  made.append(element("progress", "", { max: 100, value: at.percent }))
  const step = at.text ? `: ${at.text}` : at.steps ? `, step ${at.step} of ${at.steps}` : ""
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

function showJobs(found, status) {
  const now = Date.now() / 1000
  fill("jobs", [
    ["job", job => element("code", job.job_id.split("@")[0].slice(0, 8), { title: job.job_id })],
    ["owner", job => job.tenant || job.client_id?.slice(0, 8) || "–"],
    ["workflow", job => job.name || `${job.nodes} nodes`],
    ["model", job => job.model || "–"],
    ["state", job => job.state],
    ["progress", progress],
    ["why it waits", job => reason(job, status)],
    ["age", job => duration(now - job.created_s), true],
    ["", job => button("Cancel", () => post(`/jobs/${encodeURIComponent(job.job_id)}/cancel`))],
  ], found.jobs, "nothing runs and nothing waits")
  const more = found.running + found.pending - found.jobs.length
  if (more > 0) byId("jobs").append(element("caption", `and ${more} more`))
}

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
  fill("pools", [
    ["pool", pool => pool.pool],
    ["replicas", pool => String(pool.replicas), true],
    ["running", pool => String(pool.running), true],
    ["waiting", pool => String(pool.waiting), true],
    ["work that waits", pool => duration(pool.waiting_s), true],
  ], load.pools, "no pool")
  fillChoices("pool-names", load.pools.map(pool => pool.pool))
  const troubles = new Map(status.troubles.map(one => [one.replica_id, one.why]))
  fill("replicas", [
    ["replica", replica => element("code", replica.replica_id.slice(0, 12), { title: replica.replica_id })],
    ["pool", replica => replica.pool],
    ["tasks", replica => `${replica.running} of ${replica.slots}`],
    ["holds", replica => replica.recipes.join(", ") || "no model"],
    ["", replica => [
      troubles.get(replica.replica_id) && `cannot work: ${troubles.get(replica.replica_id)}`,
      replica.quarantined && "kept for one job alone",
      replica.draining && "takes no more tasks",
      replica.drained && (replica.running ? "drains" : "drained"),
      ...replica.notes,
    ].filter(Boolean).join("; ")],
    ["", replica => drainButton("replica", replica.replica_id, status)],
  ], status.replicas, "no replica")
  fill("hosts", [
    ["host", host => host.host],
    ["memory, GB", host => `${gigabytes(host.ram_available_mb)} of ${gigabytes(host.ram_total_mb)} free`],
    ["GPUs", host => host.gpus.map(gpu =>
      `${gpu.name}: ${gigabytes(gpu.vram_free_mb)} of ${gigabytes(gpu.vram_total_mb)} GB free`).join("; ") || "none"],
    ["", host => status.replicas.some(replica => replica.host === host.host) ? drainButton("host", host.host, status) : ""],
  ], status.hosts, "no host")
}

function drainButton(kind, name, status) {
  const drained = status.drained.some(one => one.kind === kind && one.name === name)
  return button(drained ? "Undo drain" : "Drain", () => post(drained ? "/undrain" : "/drain", { [kind]: name }))
}

// kinds: [name in a slot, class]; the bars of a slot stand on each other.
function chart(title, activity, kinds, show) {
  const heights = activity.slots.map(slot => kinds.reduce((sum, [name]) => sum + slot[name], 0))
  const highest = Math.max(...heights, 0)
  const count = DAY_S / activity.slot_s
  const drawing = document.createElementNS(SVG, "svg")
  drawing.setAttribute("viewBox", `0 0 ${count} 100`)
  drawing.setAttribute("preserveAspectRatio", "none")
  drawing.setAttribute("role", "img")
  drawing.setAttribute("aria-label", `${title}, at most ${show(highest)}`)
  for (const slot of activity.slots) {
    let below = 0
    for (const [name, kind] of kinds) {
      const bar = document.createElementNS(SVG, "rect")
      const height = highest ? slot[name] / highest * 96 : 0
      const at = { x: (slot.begins_s - activity.since_s) / activity.slot_s + 0.1, y: 100 - below - height, width: 0.8, height }
      for (const [key, value] of Object.entries(at)) bar.setAttribute(key, value)
      bar.setAttribute("class", kind)
      drawing.append(bar)
      below += height
    }
  }
  const figure = element("figure")
  figure.append(element("figcaption", `${title}: at most ${show(highest)} in ${duration(activity.slot_s)}`), drawing)
  return figure
}

async function refreshCharts() {
  const activity = await ask("/operator/activity")
  byId("charts").replaceChildren(
    chart("jobs that ended", activity, [["success", "success"], ["error", "error"], ["cancelled", "cancelled"]], String),
    chart("errors", activity, [["error", "error"]], String),
    chart("mean wait", activity, [["wait_s", "mean"]], duration),
    chart("mean duration", activity, [["run_s", "mean"]], duration),
  )
  try {
    const { tenants } = await ask("/tenants")
    fill("tenants", [
      ["tenant", one => one.tenant || "(operator)"],
      ["keys", one => String(one.keys), true],
      ["waiting", one => String(one.jobs.queued ?? 0), true],
      ["running", one => String(one.jobs.running ?? 0), true],
      ["GPU-seconds today", one => one.gpu_s_today.toFixed(1), true],
      ["bytes stored", one => one.bytes_stored.toLocaleString(), true],
      ["", one => one.tenant ? button("Pause", () => post("/pause", { tenant: one.tenant })) : ""],
    ], tenants, "no tenant yet")
    byId("tenants-section").hidden = false
    await refreshKeys(tenants)
  } catch {
    // A server without tenants has no such route.
  }
}

async function refreshKeys(tenants) {
  const { keys } = await ask("/tenants/keys")
  const names = [...new Set([...tenants, ...keys].map(one => one.tenant))].filter(Boolean).sort()
  fillChoices("tenant-names", names)
  fill("keys", [
    ["key", key => element("code", key.shown)],
    ["tenant", key => key.tenant || "(operator)"],
    ["name", key => key.name],
    ["allows", key => key.scopes.join(", ")],
    ["made", key => new Date(key.created_s * 1000).toLocaleDateString()],
    ["holds until", key => key.ends_s === null ? "it is revoked" : new Date(key.ends_s * 1000).toLocaleString()],
    ["", keyButtons],
  ], keys.filter(key => key.ends_s === null || key.ends_s > Date.now() / 1000), "no key")
}

function keyButtons(key) {
  const path = `/tenants/keys/${key.key_id}`
  const buttons = element("span")
  buttons.append(
    button("Rotate", () => post(`${path}/rotate`).then(showKey)),
    button("Revoke", async () => {
      if (!confirm(`Revoke ${key.shown}? Whoever uses it is refused within seconds.`)) return
      await post(`${path}/revoke`)
      await refreshCharts()
    }),
  )
  return buttons
}

// A key is shown once: the server has its hash alone.
async function showKey({ key }) {
  byId("new-key").replaceChildren("The new key, shown this once: ", element("code", key))
  byId("new-key").hidden = false
  await refreshCharts()
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
  showStatus(status)
  showJobs(jobs, status)
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
