// Marks each template with where it runs: here, in a pool that is a ComfyUI, or what it lacks. The mark is its first tag,
// so that the page's filter has it too.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const NAMED = 3;

function mark(found) {
  if (found.place === "here") return "runs here";
  if (found.place === "pool") return "runs in a ComfyUI pool";
  return `lacks ${found.lacks.length} ${found.lacks.length === 1 ? "class" : "classes"}`;
}

function lacking(found) {
  const more = found.lacks.length - NAMED;
  return `Not here: ${found.lacks.slice(0, NAMED).join(", ")}${more > 0 ? ` and ${more} more` : ""}.`;
}

function marked(template, found) {
  if (!found) return template;
  const tags = [mark(found), ...(template.tags ?? [])];
  const about = template.description ?? "";
  return { ...template, tags, description: found.lacks.length ? `${lacking(found)} ${about}` : about };
}

app.registerExtension({
  name: "serve_app.Templates",
  async init() {
    const load = api.getCoreWorkflowTemplates.bind(api);
    api.getCoreWorkflowTemplates = async (...args) => {
      const [groups, answer] = await Promise.all([load(...args), api.fetchApi("/serve_app/templates")]);
      if (!answer.ok) return groups;
      const found = await answer.json();
      return groups.map(group => ({ ...group, templates: group.templates.map(one => marked(one, found[one.name])) }));
    };
  },
});
