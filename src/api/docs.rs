//! The OpenAPI document and Swagger UI as they are served: everything comes from the binary, and the page may load
//! and call its own origin only.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use utoipa_swagger_ui::Config;

use super::{Edge, openapi, reply::Document, routes::Version};
use crate::services::problem::Problem;

/// What a page of Swagger UI may do. It sets styles by script, which `style-src` does not concern.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The files that the page loads; the distribution has more.
pub const FILES: [&str; 5] =
    ["swagger-ui.css", "swagger-ui-bundle.js", START_FILE, "favicon-32x32.png", "favicon-16x16.png"];

const START_FILE: &str = "start.js";
const SCRIPT: &str = "text/javascript; charset=utf-8";

// Addresses are relative, so that a proxy may serve the gateway below a path. The loaded files stand below the page's
// own path, whether it was asked for with its trailing slash or not.
const PAGE: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>bifrons</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" type="image/png" href="{below}favicon-32x32.png" sizes="32x32">
<link rel="icon" type="image/png" href="{below}favicon-16x16.png" sizes="16x16">
<link rel="stylesheet" href="{below}swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<noscript><a href="{below}../openapi.json">openapi.json</a></noscript>
<script src="{below}swagger-ui-bundle.js"></script>
<script src="{below}start.js"></script>
</body>
</html>
"#;

// `validatorUrl: null`: the badge would send the document's address to another host.
const START: &str = r##""use strict";
SwaggerUIBundle({
  url: new URL("../openapi.json", document.currentScript.src).href,
  dom_id: "#swagger-ui",
  layout: "BaseLayout",
  validatorUrl: null,
  persistAuthorization: false,
  withCredentials: false,
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  tryItOutEnabled: false,
});
"##;

/// The documents of both versions. Each is made when it is first asked for, since making it takes several
/// megabytes that most instances never need, and kept for the life of the process.
#[derive(Debug, Clone)]
pub struct Documents {
    public_url: String,
    v1: OnceLock<&'static [u8]>,
    v2: OnceLock<&'static [u8]>,
}

impl Documents {
    /// To be served below this address.
    pub fn new(public_url: &str) -> Self {
        Self { public_url: public_url.to_owned(), v1: OnceLock::new(), v2: OnceLock::new() }
    }

    fn of(&self, version: Version) -> &'static [u8] {
        let place = match version {
            Version::V1 => &self.v1,
            Version::V2 => &self.v2,
        };
        // Made once; answers then borrow it, however many clients read slowly.
        place.get_or_init(|| {
            serde_json::to_vec(&openapi::document(version, &self.public_url)).unwrap_or_default().leak()
        })
    }
}

/// `GET /api/{v}/openapi.json`
///
/// # Errors
/// 404 when documents are switched off.
pub fn openapi(edge: &Edge, version: Version) -> Result<Document, Problem> {
    let bytes = documents(edge)?.of(version);
    Ok(Document { content_type: "application/json", is_cacheable: false, headers: headers(), body: bytes.into() })
}

/// `GET /api/{v}/docs/`, by the path that was asked for.
///
/// # Errors
/// 404 when documents are switched off.
pub fn page(edge: &Edge, path: &str) -> Result<Document, Problem> {
    documents(edge)?;
    let below = if path.ends_with('/') { "" } else { "docs/" };
    let body = PAGE.replace("{below}", below).into_bytes().into();
    Ok(Document { content_type: "text/html; charset=utf-8", is_cacheable: false, headers: headers(), body })
}

/// `GET /api/{v}/docs/{file}`, by what stands in the path.
///
/// # Errors
/// 404 when there is no such file, or documents are switched off.
pub fn file(edge: &Edge, parameters: &[String]) -> Result<Document, Problem> {
    documents(edge)?;
    let name = parameters.first().map(String::as_str).unwrap_or_default();
    let (content_type, body) = bundled(name).ok_or_else(not_found)?;
    Ok(Document { content_type, is_cacheable: true, headers: headers(), body })
}

fn bundled(name: &str) -> Option<(&'static str, Cow<'static, [u8]>)> {
    if name == START_FILE {
        return Some((SCRIPT, Cow::Borrowed(START.as_bytes())));
    }
    let name = FILES.into_iter().find(|file| *file == name && *file != START_FILE)?;
    let served = utoipa_swagger_ui::serve(name, Arc::new(Config::default())).ok().flatten()?;
    let content_type = match name.rsplit('.').next() {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => SCRIPT,
        _ => "image/png",
    };
    Some((content_type, served.bytes))
}

fn documents(edge: &Edge) -> Result<&Documents, Problem> {
    edge.documents().ok_or_else(not_found)
}

fn not_found() -> Problem {
    Problem::new(404, "not_found", "There is nothing at this path.")
}

fn headers() -> Vec<(&'static str, String)> {
    vec![("Content-Security-Policy", POLICY.to_owned()), ("Referrer-Policy", "no-referrer".to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    fn edge(overrides: &[&str]) -> Edge {
        Edge::new(&Settings::from_overrides(overrides).unwrap())
    }

    fn text(document: &Document) -> &str {
        std::str::from_utf8(&document.body).unwrap()
    }

    fn file_of(edge: &Edge, name: &str) -> Result<Document, Problem> {
        file(edge, &[name.to_owned()])
    }

    #[test]
    fn every_file_that_the_page_names_is_there() {
        let edge = edge(&[]);
        let page = page(&edge, "/api/v1/docs/").unwrap();
        let is_file = |part: &&str| [".js", ".css", ".png"].iter().any(|end| part.ends_with(end));
        let mut names: Vec<&str> = text(&page).split('"').filter(is_file).collect();
        let mut known = FILES.to_vec();
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(names, known);
        for name in names {
            let file = file_of(&edge, name).unwrap();
            assert!(!file.body.is_empty() && file.is_cacheable, "{name}");
            assert!(matches!(file.body, Cow::Borrowed(_)), "{name} would be copied for each client");
        }
        for name in ["index.html", "swagger-initializer.js", "../Cargo.toml", ""] {
            assert_eq!(file_of(&edge, name).unwrap_err().status, 404, "{name}");
        }
    }

    #[test]
    fn the_page_finds_its_files_with_and_without_a_slash_and_names_no_other_host() {
        let edge = edge(&[]);
        assert!(text(&page(&edge, "/api/v2/docs/").unwrap()).contains("href=\"swagger-ui.css\""));
        let bare = page(&edge, "/api/v2/docs").unwrap();
        assert!(text(&bare).contains("href=\"docs/swagger-ui.css\""));
        for text in [text(&bare), START] {
            assert!(!text.contains("://") && !text.contains("\"//"), "{text}");
        }
        // The policy allows no script or style within the page.
        assert!(!["style=", "<style", "<script>", "onload"].iter().any(|inline| text(&bare).contains(inline)));
        assert!(!POLICY.contains("unsafe"));
    }

    #[test]
    fn documents_are_made_once() {
        let edge = edge(&[]);
        for version in [Version::V1, Version::V2] {
            let document = openapi(&edge, version).unwrap();
            assert!(matches!(document.body, Cow::Borrowed(_)));
            assert!(text(&document).contains(&format!("/api/{}/auth/login/", version.word())));
        }
    }

    #[test]
    fn switched_off_there_is_nothing() {
        let edge = edge(&["docs.enabled=false"]);
        let problems = [openapi(&edge, Version::V1), page(&edge, "/api/v1/docs/"), file_of(&edge, "start.js")];
        assert!(problems.into_iter().all(|outcome| outcome.unwrap_err().code == "not_found"));
    }
}
