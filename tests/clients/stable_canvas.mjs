// Runs the prompt on standard input through @stable-canvas/comfyui-client and prints the pictures' addresses.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [url, modules] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const { Client } = require("@stable-canvas/comfyui-client");
const prompt = JSON.parse(readFileSync(0, "utf8"));

const client = new Client({ api_host: new URL(url).host, api_base: "/api", WebSocket: require("ws"), fetch });
client.connect();
const result = await client.enqueue(prompt);
console.log(JSON.stringify(result.images.map((image) => image.data)));
client.close();
process.exit(0);
