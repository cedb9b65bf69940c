// A tab of the page's side bar with the server's queue: whose a job is, its place, about how long it waits, what it does.
// The page's own lists have none of these, and call a cancelled job failed.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const EVERY_MS = 2000;
const STYLE = `
.serve-app-queue { font-size: 0.85rem; padding: 0.8rem; height: 100%; overflow-y: auto; }
.serve-app-queue h3 { font-size: 1rem; margin: 0 0 0.6rem; }
.serve-app-queue li { border-top: 1px solid var(--p-content-border-color, #8884); list-style: none; padding: 0.5rem 0; }
.serve-app-queue ul { margin: 0; padding: 0; }
.serve-app-queue .what { display: flex; gap: 0.5rem; justify-content: space-between; }
.serve-app-queue .mine { font-weight: 600; }
.serve-app-queue .dim { opacity: 0.7; }
.serve-app-queue progress { width: 100%; }`;

function element(name, text = "", kind = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function ordinal(place) {
  const words = ["first", "second", "third", "fourth", "fifth"];
  return words[place - 1] ?? `number ${place}`;
}

function duration(seconds) {
  return seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`;
}

function state(job) {
  const at = job.progress;
  if (job.state === "pending") {
    const wait = job.wait_s === null ? "" : `, about ${duration(job.wait_s)}`;
    return at?.position ? `${ordinal(at.position)}${wait}` : "waits";
  }
  if (at?.text) return at.text;
  const left = at?.left_s == null ? "" : `, about ${duration(at.left_s)} left`;
  if (at?.steps) return `${at.class_type}, step ${at.step} of ${at.steps}${left}`;
  return at?.class_type ?? "starts";
}

function row(job) {
  const mine = job.client_id === api.clientId;
  const made = element("li");
  const what = element("div", "", "what");
  const title = job.name || job.model || `${job.nodes} nodes`;
  const owner = mine ? "yours" : job.tenant || "another's";
  what.append(element("span", title, mine ? "mine" : ""), element("span", owner, "dim"));
  made.append(what, element("div", state(job), "dim"));
  if (job.state === "running" && job.progress) {
    const bar = element("progress");
    bar.max = 100;
    bar.value = job.progress.percent;
    made.append(bar);
  }
  return made;
}

async function refresh(place) {
  const answer = await api.fetchApi("/serve_app/queue");
  if (!answer.ok) return;
  const { jobs, running, pending, paused } = await answer.json();
  const heading = running + pending ? `${running} running, ${pending} waiting` : "Nothing runs and nothing waits";
  const list = element("ul");
  list.append(...jobs.map(row));
  const more = running + pending - jobs.length;
  place.replaceChildren(
    element("style", STYLE),
    element("h3", heading),
    ...(paused.length ? [element("p", `An operator has paused: ${paused.join(", ")}`)] : []),
    list,
    ...(more > 0 ? [element("p", `and ${more} more`, "dim")] : []),
  );
}

// The saved workflow gets its name, which the lists of jobs show.
function named(workflow) {
  const name = app.extensionManager.workflow?.activeWorkflow?.filename;
  return name && workflow ? { ...workflow, extra: { ...workflow.extra, workflow_name: name } } : workflow;
}

app.registerExtension({
  name: "serve_app.Jobs",
  async init() {
    const queue = api.queuePrompt.bind(api);
    api.queuePrompt = (number, prompt, ...rest) =>
      queue(number, { ...prompt, workflow: named(prompt.workflow) }, ...rest);
  },
  async setup() {
    let timer;
    app.extensionManager.registerSidebarTab({
      id: "serve-app-queue",
      icon: "pi pi-list",
      title: "Server",
      tooltip: "The server's queue: places, waits, whose jobs they are",
      type: "custom",
      render(place) {
        place.classList.add("serve-app-queue");
        clearInterval(timer);
        refresh(place);
        timer = setInterval(() => place.isConnected && !document.hidden && refresh(place), EVERY_MS);
      },
      destroy: () => clearInterval(timer),
    });
    api.addEventListener("execution_interrupted", () => {
      const detail = "The job was cancelled.";
      app.extensionManager.toast.add({ severity: "info", summary: "Cancelled", detail, life: 4000 });
    });
  },
});
