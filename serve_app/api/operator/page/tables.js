// The page's tables, drawn by Tabulator. Whatever a cell shows is a node of text, never markup: names come from clients.

import { TabulatorFull as Tabulator } from "./tabulator.js"

export function element(name, text = "", attributes = {}) {
  const made = document.createElement(name)
  made.textContent = text
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
  return made
}

const HIGHEST = "30rem"

// columns: { title, value: row => what is shown and sorted by, show: row => a node in its place, number, sortable }.
// A cell is drawn again when its value has changed. key: row => what tells rows apart.
export class Table {
  constructor(id, key, columns, empty) {
    this.place = document.getElementById(id)
    this.key = key
    this.columns = columns
    this.empty = empty
    this.keys = null
    this.work = Promise.resolve()
  }

  // Shows these rows, once those before are shown. The first call makes the table, whose place must have a width.
  show(rows) {
    const shown = this.work.then(() => this.put(rows.map(row => this.record(row))))
    this.work = shown.catch(() => {}) // what the caller is told keeps no later rows from being shown
    return shown
  }

  record(row) {
    const values = this.columns.map((column, index) => [`c${index}`, column.value(row) ?? ""])
    return { id: this.key(row), row, ...Object.fromEntries(values) }
  }

  async put(records) {
    const keys = JSON.stringify(records.map(record => record.id))
    if (this.keys === null) await this.make(records)
    else if (this.keys !== keys) await this.table.replaceData(records)
    else if (records.length) await this.table.updateData(records) // it refuses an empty list
    this.keys = keys
  }

  make(data) {
    this.table = new Tabulator(this.place, {
      data,
      columns: this.columns.map((column, index) => this.definition(column, index)),
      layout: "fitDataFill",
      maxHeight: HIGHEST,
      placeholder: this.empty,
    })
    return new Promise(built => this.table.on("tableBuilt", built))
  }

  definition(column, index) {
    return {
      title: column.title,
      field: `c${index}`,
      hozAlign: column.number ? "right" : "left",
      headerHozAlign: column.number ? "right" : "left",
      headerSort: column.sortable ?? Boolean(column.title),
      sorter: column.number ? "number" : "string",
      formatter: cell => (column.show ?? text)(cell.getData().row, cell.getValue()),
    }
  }
}

function text(_, value) {
  return document.createTextNode(String(value))
}
