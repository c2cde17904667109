"""The server's front: OpenAI's protocol over HTTP. `app` has the routes, `asked` reads what a
client sends, `running` waits for the worker, `answers` makes what the client gets, `guards` keeps
out what would harm the others."""
