// A web application on every node, with the middlewares of litefs-js: each client reads its own
// writes on all of them, and goes on when the primary dies. See README.md beside this file.
import { existsSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import Database from 'better-sqlite3'
import express from 'express'
import {
	getEnsurePrimaryMiddleware,
	getSetTxNumberMiddleware,
	getTransactionalConsistencyMiddleware,
} from 'litefs-js/express'

const { LITEFS_DIR, DATABASE_FILENAME, HOST = '127.0.0.1', PORT = '8081' } = process.env
const file = path.join(LITEFS_DIR, DATABASE_FILENAME)

// A connection for each request: one that was opened on a replica may be for reading only, also
// after the node has become the primary.
function withDatabase(work) {
	const db = new Database(file, { timeout: 20_000 })
	try {
		return work(db)
	} finally {
		db.close()
	}
}

function count() {
	if (!existsSync(file)) return 0 // nobody was here yet
	return withDatabase(db => db.prepare('SELECT count(*) FROM visit').pluck().get())
}

function visit() {
	return withDatabase(db =>
		db.transaction(() => {
			db.exec('CREATE TABLE IF NOT EXISTS visit (n INTEGER PRIMARY KEY, at TEXT)')
			return db.prepare('INSERT INTO visit (at) VALUES (datetime())').run().lastInsertRowid
		})(),
	)
}

const app = express()
app.use(getTransactionalConsistencyMiddleware())
app.use(getEnsurePrimaryMiddleware())
app.get('/visits', (req, res) => res.send(`${count()} visits, says ${os.hostname()}\n`))
app.post('/visits', (req, res, next) => {
	res.locals.number = visit()
	next()
})
app.use(getSetTxNumberMiddleware())
app.post('/visits', (req, res) => res.send(`visit ${res.locals.number} on ${os.hostname()}\n`))
const server = app.listen(Number(PORT), HOST, error => {
	if (error) throw error
	console.log(`app.js listens on ${HOST}:${server.address().port}`)
})
process.on('SIGTERM', () => server.close())
