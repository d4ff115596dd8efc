//! Line plots as SVG that follow a light or a dark page, or stand alone.

use std::fmt::Write as _;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 270.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 40.0;

/// Colours by role, for the page and for a plot that stands alone.
pub const COLOURS: &str = "\
:root{color-scheme:light dark;--paper:#fff;--card:#f6f7f9;--ink:#1d2433;--faint:#687083;--rule:#dfe3ea;\
--v1:#c2571a;--v2:#1f6fd1;--limit:#7d8597;--good:#1a7f4b;--bad:#c0302b}\
@media(prefers-color-scheme:dark){:root{--paper:#12151c;--card:#1b202a;--ink:#e6e9f0;--faint:#9aa3b5;--rule:#303746;\
--v1:#f0915a;--v2:#6aaaf8;--limit:#8d96a8;--good:#56c48b;--bad:#f0746f}}";

const PLOT_STYLE: &str = "\
.plot text{font:11px system-ui,sans-serif;fill:var(--faint)}.plot .title{font-size:13px;font-weight:600;fill:var(--ink)}\
.plot .grid{stroke:var(--rule);stroke-width:1}.plot .line{fill:none;stroke-width:2;stroke-linejoin:round}\
.plot .v1{stroke:var(--v1)}.plot .v2{stroke:var(--v2)}.plot .limit{stroke:var(--limit)}\
.plot .dash{stroke-dasharray:5 4}.plot circle.v1{fill:var(--v1)}.plot circle.v2{fill:var(--v2)}\
.plot .band{stroke:none;opacity:.16}.plot .band.v1{fill:var(--v1)}.plot .band.v2{fill:var(--v2)}";

/// A line of a plot.
pub struct Line {
    pub name: String,
    /// `v1`, `v2` or `limit`: its colour.
    pub class: &'static str,
    pub is_dashed: bool,
    /// Horizontally and vertically, with the least and the greatest of what the point is the middle of.
    pub points: Vec<(f64, f64, (f64, f64))>,
}

/// A plot with a logarithmic horizontal axis.
pub struct Plot {
    pub title: String,
    pub across: &'static str,
    pub up: &'static str,
    pub is_logarithmic: bool,
    pub lines: Vec<Line>,
}

impl Plot {
    /// The styles that a page with plots needs once.
    pub fn style() -> &'static str {
        PLOT_STYLE
    }

    /// A file of its own.
    pub fn alone(&self) -> String {
        let style =
            format!("<style>{COLOURS}{PLOT_STYLE}</style><rect width=\"100%\" height=\"100%\" fill=\"var(--paper)\"/>");
        self.draw(&style)
    }

    /// A part of a page.
    pub fn inline(&self) -> String {
        self.draw("")
    }

    fn draw(&self, style: &str) -> String {
        let points = || self.lines.iter().flat_map(|line| line.points.iter());
        let mut across: Vec<f64> = points().map(|point| point.0).collect();
        across.sort_by(f64::total_cmp);
        across.dedup();
        let (first, last) = (across.first().copied().unwrap_or(1.0), across.last().copied().unwrap_or(1.0));
        let top = points().map(|point| point.1.max(point.2.1)).fold(0.0, f64::max).max(1e-6);
        let bottom = points().map(|point| point.1.min(point.2.0)).filter(|low| *low > 0.0).fold(top, f64::min);
        let ticks = if self.is_logarithmic { decades(bottom, top) } else { steps(top) };
        let (low, high) = (ticks.first().copied().unwrap_or(0.0), ticks.last().copied().unwrap_or(top));
        let x = |value: f64| {
            let part = if last > first { (value / first).ln() / (last / first).ln() } else { 0.5 };
            LEFT + part * (WIDTH - LEFT - RIGHT)
        };
        let y = |value: f64| {
            let part = match self.is_logarithmic {
                true => (value.max(low) / low).ln() / (high / low).ln(),
                false => value / high,
            };
            HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
        };
        let mut svg = format!(
            "<svg class=\"plot\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{}\">{style}<text class=\"title\" x=\"4\" y=\"16\">{}</text>",
            escape(&self.title),
            escape(&self.title)
        );
        // Writing to a string does not fail.
        let out = &mut svg;
        for tick in &ticks {
            let (at, label) = (y(*tick), label(*tick));
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0
            );
        }
        for value in &across {
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>",
                x(*value),
                HEIGHT - BOTTOM + 16.0
            );
        }
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><text x=\"{}\" y=\"16\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            HEIGHT - 6.0,
            self.across,
            WIDTH - RIGHT,
            self.up
        );
        let mut beside = LEFT;
        for line in &self.lines {
            self.draw_line(out, line, &x, &y, (first, last));
            let dash = if line.is_dashed { " dash" } else { "" };
            let _ = write!(
                out,
                "<line class=\"line {}{dash}\" x1=\"{beside:.1}\" x2=\"{:.1}\" y1=\"32\" y2=\"32\"/>\
                 <text x=\"{:.1}\" y=\"36\">{}</text>",
                line.class,
                beside + 18.0,
                beside + 23.0,
                escape(&line.name)
            );
            // A letter of this size is about so wide.
            beside += 38.0 + 5.8 * super::measure::real(u64::try_from(line.name.chars().count()).unwrap_or_default());
        }
        svg.push_str("</svg>");
        svg
    }

    fn draw_line(
        &self,
        out: &mut String,
        line: &Line,
        x: &dyn Fn(f64) -> f64,
        y: &dyn Fn(f64) -> f64,
        (first, last): (f64, f64),
    ) {
        let dash = if line.is_dashed { " dash" } else { "" };
        let mut path = String::new();
        for (index, (across, up, _)) in line.points.iter().enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if index == 0 { "M" } else { "L" }, x(*across), y(*up));
        }
        // A limit was measured at one place and holds everywhere.
        if let (true, Some((_, up, _))) = (line.class == "limit", line.points.first()) {
            path = format!("M{:.1} {:.1}L{:.1} {:.1}", x(first), y(*up), x(last), y(*up));
            if first >= last {
                path = format!("M{LEFT} {:.1}L{:.1} {:.1}", y(*up), WIDTH - RIGHT, y(*up));
            }
        }
        let upper = line.points.iter().map(|(across, _, (_, most))| format!("{:.1} {:.1}", x(*across), y(*most)));
        let lower =
            line.points.iter().rev().map(|(across, _, (least, _))| format!("{:.1} {:.1}", x(*across), y(*least)));
        let outline: Vec<String> = upper.chain(lower).collect();
        if line.class != "limit" && line.points.len() > 1 {
            let _ = write!(out, "<path class=\"band {}\" d=\"M{}Z\"/>", line.class, outline.join("L"));
        }
        let _ = write!(out, "<path class=\"line {}{dash}\" d=\"{path}\"/>", line.class);
        if line.class != "limit" && !line.is_dashed {
            for (across, up, _) in &line.points {
                let _ = write!(
                    out,
                    "<circle class=\"{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>",
                    line.class,
                    x(*across),
                    y(*up)
                );
            }
        }
    }
}

/// Powers of ten around what is shown, with steps between them when there is room.
fn decades(bottom: f64, top: f64) -> Vec<f64> {
    let (from, to) = (bottom.log10().floor(), top.log10().ceil());
    let mut power = from;
    let mut ticks = Vec::new();
    while power <= to + 0.5 {
        ticks.push(10_f64.powf(power));
        power += 1.0;
    }
    if ticks.len() <= 3 {
        ticks = ticks.iter().flat_map(|tick| [*tick, tick * 2.0, tick * 5.0]).collect();
    }
    let above = ticks.iter().copied().find(|tick| *tick >= top).unwrap_or(top);
    let below = ticks.iter().copied().rev().find(|tick| *tick <= bottom).unwrap_or(bottom);
    ticks.retain(|tick| *tick >= below && *tick <= above);
    if ticks.len() < 2 { vec![bottom / 2.0, bottom, bottom * 2.0] } else { ticks }
}

/// Round numbers from zero to above the greatest.
fn steps(top: f64) -> Vec<f64> {
    let rough = top / 4.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].iter().map(|factor| factor * power).find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    let mut ticks = vec![0.0];
    let mut at = 0.0;
    while at < top {
        at += step;
        ticks.push(at);
    }
    ticks
}

fn label(value: f64) -> String {
    match value {
        v if v >= 10_000.0 => format!("{}k", trimmed(v / 1000.0)),
        v => trimmed(v),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
