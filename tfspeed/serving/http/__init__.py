"""The server's front: OpenAI's protocol over HTTP. `app` has the routes, `asked` reads what a
client sends, `answers` makes what it gets, `guards` keeps out what would harm the others."""
