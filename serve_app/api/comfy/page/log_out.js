// Puts "Log out" into the page's menu: the server ends the session in the page's cookie, which no script can.
import { app } from "../../scripts/app.js";

const LOG_OUT = "serve_app.LogOut";

app.registerExtension({
  name: LOG_OUT,
  commands: [
    {
      id: LOG_OUT,
      label: "Log out",
      icon: "pi pi-sign-out",
      async function() {
        const answer = await fetch("/logout", { method: "POST" });
        window.location.assign(answer.url);
      },
    },
  ],
  menuCommands: [{ path: ["File"], commands: [LOG_OUT] }],
});
