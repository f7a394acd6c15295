"""Work off this process: a job is a file in, its result a folder out, on processes, commands or Ray."""
