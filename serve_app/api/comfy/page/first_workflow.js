// Shows the server's first workflow where the page would show its own, which names models that are not there.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "serve_app.FirstWorkflow",
  async init() {
    const answer = await api.fetchApi("/workflow_templates/serve_app/first_workflow.json");
    if (!answer.ok) return;
    const first = await answer.json();
    const load = app.loadGraphData.bind(app);
    app.loadGraphData = (graph, ...rest) => load(graph ?? structuredClone(first), ...rest);
    // Until this is set, a visit begins with a choice of templates over an empty canvas.
    const settings = app.extensionManager.setting;
    if (!settings.get("Comfy.TutorialCompleted")) await settings.set("Comfy.TutorialCompleted", true);
  },
});
