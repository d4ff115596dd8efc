//! The report as a page that needs nothing beside itself.

use std::fmt::Write as _;

use super::{
    plot::{COLOURS, Plot, escape},
    report::{Cell, Drawn, Grid, Report, SHARED, Spread, multiple, percent, short},
    run::CROWD,
    targets::Target,
};

const STYLE: &str = "\
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}\
main{max-width:1120px;margin:0 auto;padding:40px 24px 80px}h1{font-size:30px;line-height:1.15;margin:0 0 6px;letter-spacing:-.02em}\
h2{font-size:21px;margin:52px 0 14px;letter-spacing:-.01em}h3{font-size:15px;margin:26px 0 8px}p{margin:0 0 12px}\
.faint{color:var(--faint)}.lead{color:var(--faint);max-width:46em;margin-bottom:22px}\
dl.conditions{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:10px 26px;margin:0;padding:16px 20px;\
background:var(--card);border-radius:10px;font-size:13px}dt{color:var(--faint)}dd{margin:0;overflow-wrap:anywhere}\
.warning{margin:18px 0 0;padding:11px 20px;border-left:3px solid var(--bad);background:var(--card);border-radius:0 10px 10px 0;\
font-size:14px}.tally{display:flex;gap:28px;margin:8px 0 18px;font-size:14px}.tally b{font-size:26px;display:block;line-height:1.1;font-weight:650}\
.tally .yes b{color:var(--good)}.tally .no b{color:var(--bad)}.tally .open b{color:var(--faint)}\
.targets{border-top:1px solid var(--rule)}.target{display:grid;grid-template-columns:26px minmax(220px,1fr) 2fr;gap:4px 14px;\
padding:11px 0;border-bottom:1px solid var(--rule)}.target .mark{font-weight:700}.yes .mark{color:var(--good)}\
.no .mark{color:var(--bad)}.open .mark,.open{color:var(--faint)}.target small{display:block;color:var(--faint)}\
.found{display:flex;flex-wrap:wrap;gap:3px 18px;font-size:13.5px;align-content:flex-start}.found .bad{color:var(--bad)}\
.found i{color:var(--faint);font-style:normal}\
.bars{display:grid;grid-template-columns:max-content 1fr;gap:5px 14px;align-items:center;font-size:13.5px}\
.bar{position:relative;height:19px;background:var(--card);border-radius:4px}.bar span{position:absolute;inset:0 auto 0 0;\
border-radius:4px}.bar .v1{background:var(--v1)}.bar .v2{background:var(--v2)}.bar b{position:absolute;left:8px;top:0;line-height:19px;\
font-size:12px;font-weight:600;color:#fff;text-shadow:0 0 3px #0007;white-space:nowrap}.bar b.beside{color:var(--ink);text-shadow:none}\
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:26px 34px}.plot{width:100%;height:auto;display:block}\
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;width:100%}\
th{font-weight:500;color:var(--faint);text-align:right;padding:5px 9px;border-bottom:1px solid var(--rule);white-space:nowrap}\
td{text-align:right;padding:4px 9px;white-space:nowrap}td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}\
tr.first td{border-top:1px solid var(--rule)}tr.of-limit td{color:var(--faint)}td.bad{color:var(--bad);font-weight:600}\
summary{cursor:pointer;color:var(--faint);margin:18px 0 8px}.key{display:inline-block;width:9px;height:9px;border-radius:2px;margin-right:6px}\
.key.v1{background:var(--v1)}.key.v2{background:var(--v2)}.key.limit{background:var(--limit)}\
@media(max-width:700px){.target{grid-template-columns:22px 1fr}.found{grid-column:2}}";

/// Makes the page.
pub fn page(report: &Report, plots: &[Drawn]) -> String {
    let grid = Grid::of(&report.figures);
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>bifrons under load</title><style>{COLOURS}{STYLE}{}</style></head>\
         <body><main><h1>bifrons under load</h1><p class=\"lead\">Both engines in turn, in one run on one machine, beside what \
         that machine can do at all. The load generator shares the processors with what it measures; ratios within the run \
         mean more than its single numbers.</p>",
        Plot::style()
    );
    conditions(&mut page, report);
    let others = report.others();
    if others >= SHARED {
        let _ = write!(
            page,
            "<p class=\"warning\">The machine was shared: others had {:.0} % of it while most of this was measured. Ratios of \
             measurements that followed each other still tell something; the numbers themselves do not.</p>",
            others * 100.0
        );
    }
    targets(&mut page, &report.targets);
    for backend in ["embedded", "postgres"] {
        if !report.figures.iter().any(|figure| figure.backend == backend) {
            continue;
        }
        let name = if backend == "embedded" { "SQLite and the embedded store" } else { "PostgreSQL and Redis" };
        let _ = write!(page, "<h2>{name}</h2>");
        shares(&mut page, &grid, backend);
        let own: Vec<_> = plots.iter().filter(|drawn| drawn.backend == backend).collect();
        if !own.is_empty() {
            page.push_str("<h3>By number of connections</h3><div class=\"plots\">");
            own.iter().for_each(|drawn| page.push_str(&drawn.plot.inline()));
            page.push_str("</div>");
        }
        table(&mut page, &grid, backend);
    }
    crowds(&mut page, report);
    page.push_str("</main></body></html>\n");
    page
}

fn conditions(page: &mut String, report: &Report) {
    page.push_str("<dl class=\"conditions\">");
    for (name, value) in &report.conditions {
        let _ = write!(page, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
    }
    page.push_str("</dl>");
}

fn targets(page: &mut String, targets: &[Target]) {
    let count = |state: Option<bool>| targets.iter().filter(|target| target.is_met() == state).count();
    let _ = write!(
        page,
        "<h2>Targets</h2><div class=\"tally\"><div class=\"yes\"><b>{}</b>met</div><div class=\"no\"><b>{}</b>not met</div>\
         <div class=\"open\"><b>{}</b>not measured</div></div><div class=\"targets\">",
        count(Some(true)),
        count(Some(false)),
        count(None)
    );
    for target in targets {
        let (class, mark) = match target.is_met() {
            Some(true) => ("yes", "✓"),
            Some(false) => ("no", "✗"),
            None => ("open", "–"),
        };
        let _ = write!(
            page,
            "<div class=\"target {class}\"><span class=\"mark\">{mark}</span><div>{}<small>{}</small></div><div class=\"found\">",
            escape(target.name),
            escape(&target.demand)
        );
        for found in &target.found {
            let class = if found.is_met { "" } else { " class=\"bad\"" };
            let _ = write!(page, "<span{class}><i>{}</i> {}</span>", escape(&found.place), escape(&found.value));
        }
        page.push_str("</div></div>");
    }
    page.push_str("</div>");
}

fn shares(page: &mut String, grid: &Grid<'_>, backend: &str) {
    let shares: Vec<_> = grid.shares().filter(|share| share.backend == backend).collect();
    if shares.is_empty() {
        return;
    }
    page.push_str("<h3>Share of the limit</h3><div class=\"bars\">");
    for share in shares {
        let width = (share.share.median * 100.0).clamp(0.0, 100.0);
        // What does not fit into a bar stands beside it.
        let beside = if width < 45.0 {
            format!(" class=\"beside\" style=\"left:calc({width:.1}% + 8px)\"")
        } else {
            String::new()
        };
        let crowd = if share.beside >= CROWD { format!(", {} connections", share.beside) } else { String::new() };
        let _ = write!(
            page,
            "<span>{} <span class=\"faint\">{} of “{}”{crowd}</span></span><div class=\"bar\">\
             <span class=\"{}\" style=\"width:{width:.1}%\"></span><b{beside}>{} · {}/s</b></div>",
            share.scenario,
            share.subject,
            escape(share.limit),
            share.subject,
            percent(share.share),
            short(share.per_second)
        );
    }
    page.push_str("</div>");
}

fn table(page: &mut String, grid: &Grid<'_>, backend: &str) {
    page.push_str(
        "<details open><summary>All figures</summary><div class=\"scroll\"><table><tr><th>scenario</th><th></th><th>connections</th>\
         <th>answers/s</th><th>p50 ms</th><th>p95</th><th>p99</th><th>errors</th><th>refused</th><th>reconnects</th>\
         <th title=\"processor time for each answer\">CPU server ms</th><th>database</th><th>driver</th><th>peak MiB</th><th>threads</th>\
         <th title=\"share of the machine that others had meanwhile\">others</th><th>v2/v1</th></tr>",
    );
    let mut last = String::new();
    for (row, cell) in grid.rows().filter(|(row, _)| row.backend == backend) {
        let group = format!("{} {} {}", row.scenario, row.beside, row.pace());
        let is_first = group != last;
        last = group;
        let is_limit = !row.is_engine();
        let key = if is_limit { "limit" } else { row.subject };
        let ratio = (row.subject == "v2").then(|| grid.cell(row.with("v1"))).flatten();
        let ratio = ratio.and_then(|v1| Spread::ratio(cell, v1)).map(multiple).unwrap_or_default();
        let scenario = if is_first {
            format!("{} <span class=\"faint\">{}</span>", row.scenario, row.pace())
        } else {
            String::new()
        };
        let bad = if cell.errors > 0 { " class=\"bad\"" } else { "" };
        let _ = write!(
            page,
            "<tr class=\"{}{}\"><td>{scenario}</td><td><span class=\"key {key}\"></span>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td><td{bad}>{}</td><td>{}</td><td>{}</td>{}<td>{ratio}</td></tr>",
            if is_first { "first" } else { "" },
            if is_limit { " of-limit" } else { "" },
            escape(row.subject),
            cell.connections,
            short(cell.per_second),
            short(cell.latency.p50),
            short(cell.latency.p95),
            short(cell.latency.p99),
            cell.errors,
            cell.refused,
            cell.reconnects,
            cost(cell)
        );
    }
    page.push_str("</table></div></details>");
}

fn cost(cell: &Cell) -> String {
    let shown = |value: f64| if value > 0.0 { short(value) } else { "–".to_owned() };
    format!(
        "<td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.0} %</td>",
        shown(cell.cpu.server),
        shown(cell.cpu.database),
        shown(cell.cpu.driver),
        shown(cell.memory.peak),
        if cell.threads > 0 { cell.threads.to_string() } else { "–".to_owned() },
        cell.others * 100.0
    )
}

fn crowds(page: &mut String, report: &Report) {
    if !report.beside.is_empty() {
        page.push_str(
            "<h2>Beside slow and silent clients</h2><p class=\"faint\">Token verification by 16 connections, without the others \
             and with them.</p><div class=\"scroll\"><table><tr><th>engine</th><th>clients</th><th></th><th>verify/s alone</th>\
             <th>with them</th><th>p99 ms</th><th>errors</th><th>answered</th><th>waiting</th><th>closed</th><th>failed</th><th>MiB before</th>\
             <th>with them</th><th>before any hash</th><th>threads</th></tr>",
        );
        for beside in &report.beside {
            let _ = write!(
                page,
                "<tr><td><span class=\"key {0}\"></span>{0}</td><td>{1}</td><td>{2}</td><td>{3}</td><td>{4}</td><td>{5}</td><td>{6}</td>\
                 <td>{7}</td><td>{8}</td><td>{9}</td><td>{10}</td><td>{11:.1}</td><td>{12:.1}</td><td>{13}</td><td>{14}</td></tr>",
                beside.engine,
                beside.what,
                beside.clients,
                short(beside.alone_per_second),
                short(beside.per_second),
                short(beside.latency.p99),
                beside.errors,
                beside.answered,
                beside.waiting,
                beside.closed,
                beside.failed,
                beside.memory_before,
                beside.memory,
                beside.memory_at_rest.map_or_else(|| "–".to_owned(), |memory| format!("{memory:.1}")),
                beside.threads
            );
        }
        page.push_str("</table></div>");
    }
    if !report.storms.is_empty() {
        page.push_str(
            "<h2>A storm of sign-ins</h2><p class=\"faint\">Ten times as many as can be answered, at a fixed rate.</p>\
             <div class=\"scroll\"><table><tr><th>engine</th><th>seconds</th><th>capacity/s</th><th>arrivals/s</th><th>accepted</th>\
             <th>accepted/s</th><th>p50 ms</th><th>slowest</th><th>503</th><th>p99 ms</th><th>errors</th><th>live p99 ms</th>\
             <th>slowest</th><th>afterwards/s</th><th>peak MiB</th></tr>",
        );
        for storm in &report.storms {
            let _ = write!(
                page,
                "<tr><td><span class=\"key {0}\"></span>{0}</td><td>{1:.0}</td><td>{2}</td><td>{3}</td><td>{4}</td><td>{5}</td><td>{6}</td>\
                 <td>{7}</td><td>{8}</td><td>{9}</td><td>{10}</td><td>{11}</td><td>{12}</td><td>{13}</td><td>{14:.0}</td></tr>",
                storm.engine,
                storm.seconds,
                short(storm.capacity),
                short(storm.arrivals),
                storm.accepted,
                short(storm.accepted_per_second),
                short(storm.accepted_latency.p50),
                short(storm.accepted_latency.max),
                storm.refused,
                short(storm.refused_latency.p99),
                storm.errors,
                short(storm.live.p99),
                short(storm.live.max),
                short(storm.after_per_second),
                storm.memory_peak
            );
        }
        page.push_str("</table></div>");
    }
}
