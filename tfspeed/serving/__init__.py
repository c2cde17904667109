"""Many users at once: a scheduler over a paged KV cache, backends that run its steps, a server.

`blocks` hands out the cache, `scheduler` decides what each step reads, a `Backend` reads it,
`worker` samples and tells who asked, `http` speaks OpenAI's protocol.
"""
