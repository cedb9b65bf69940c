// Runs the prompt on standard input through @saintno/comfyui-sdk and prints the pictures' addresses.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [url, modules] = process.argv.slice(2);
const { CallWrapper, ComfyApi, PromptBuilder } = createRequire(`${modules}/`)("@saintno/comfyui-sdk");
const prompt = JSON.parse(readFileSync(0, "utf8"));

const api = new ComfyApi(`${url}/api`).init();
await api.waitForReady();
const workflow = new PromptBuilder(prompt, ["seed"], ["images"])
  .setInputNode("seed", "3.inputs.seed")
  .setOutputNode("images", "6")
  .input("seed", 5);
await new CallWrapper(api, workflow)
  .onFinished((data) => console.log(JSON.stringify(data.images.images.map((image) => api.getPathImage(image)))))
  .onFailed((error) => console.error(error))
  .run();
process.exit(0);
