// Says of each node class that a workflow has and this server has not why that is, and where it would run.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "serve_app.MissingClasses",
  async afterConfigureGraph(missing) {
    const names = [...new Set((missing ?? []).map(one => (typeof one === "string" ? one : one.type)).filter(Boolean))];
    if (!names.length) return;
    const answer = await api.fetchApi(`/serve_app/missing_classes?${new URLSearchParams(names.map(name => ["name", name]))}`);
    if (!answer.ok) return;
    for (const [name, why] of Object.entries(await answer.json())) {
      app.extensionManager.toast.add({ severity: "warn", summary: `${name} does not run on this server`, detail: why });
    }
  },
});
