// A small express app with the middlewares of litefs-js, as its documentation has them. Listens on
// APP_PORT, or prints the port that the system chose. Uses the sqlite3 shell: this version of Node has no SQLite.
import { execFileSync } from 'node:child_process'
import path from 'node:path'
import express from 'express'
import {
	getEnsurePrimaryMiddleware,
	getSetTxNumberMiddleware,
	getTransactionalConsistencyMiddleware,
} from 'litefs-js/express'

const file = path.join(process.env.LITEFS_DIR, process.env.DATABASE_FILENAME)
const sqlite = sql => execFileSync('sqlite3', ['-bail', '-cmd', '.timeout 20000', file, sql], { encoding: 'utf8' })

const app = express()
app.use(getTransactionalConsistencyMiddleware())
app.use(getEnsurePrimaryMiddleware())
app.get('/rows', (req, res) => res.send(sqlite('SELECT count(*) FROM t').trim()))
app.post('/rows', (req, res, next) => {
	sqlite("INSERT INTO t(x) VALUES ('posted')")
	next()
})
app.use(getSetTxNumberMiddleware())
app.post('/rows', (req, res) => res.send('done'))
const server = app.listen(Number(process.env.APP_PORT ?? 0), '127.0.0.1', () => console.log(server.address().port))
