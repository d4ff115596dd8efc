//! The own account: reading it and changing what a person may change.

use crate::support::{PASSWORD, Request, for_each_world};
use crate::{ORDINARY, Refused, refuse_all};
use serde_json::json;

const ME: [&str; 2] = ["/api/{v}/auth/me/", "/api/{v}/profile/me/"];

#[test]
fn both_paths_show_the_same_account() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let [auth, profile] = ME.map(|path| side.send(&Request::get(path).bearer(&account.access)));
        assert_eq!(auth.status, 200, "{}", auth.shown());
        assert_eq!(auth.at("data"), profile.at("data"));
        assert_eq!(auth.at("data.email"), json!(account.email));
        assert_eq!(auth.at("data.id"), json!(account.user_id));
        assert!(!auth.shown().contains("password") && !auth.shown().contains("argon2"), "{}", auth.shown());
    });
}

#[test]
fn every_field_that_may_be_changed_is_changed_and_kept() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let changes = json!({
            "first_name": "Ad\u{e1}", "last_name": "\u{1ecc}bi \u{1f642}", "bio": "Line one\nline two", "country": "Nigeria",
            "avatar": "https://cdn.example.com/a.png", "state": "Lagos", "city": "Ikeja", "address": "1 <b>Allen</b> Avenue"
        });
        for path in ME {
            let answer = side.send(&Request::patch(path, &changes).bearer(&account.access));
            assert_eq!(answer.status, 200, "{}", answer.shown());
            let shown = side.me(&account.access);
            for (field, value) in changes.as_object().into_iter().flatten() {
                assert_eq!(&shown.at(&format!("data.{field}")), value, "{field}");
                assert_eq!(&answer.at(&format!("data.{field}")), value, "{field}");
            }
        }
        let one = side.send(&Request::patch(ME[0], &json!({ "city": "Yaba" })).bearer(&account.access));
        assert_eq!((one.at("data.city"), one.at("data.state")), (json!("Yaba"), json!("Lagos")), "the others stay");
        let none = side.send(&Request::patch(ME[0], &json!({})).bearer(&account.access));
        assert_eq!(none.status, 200, "{}", none.shown());
        let form = side.send(&Request::new("PATCH", ME[0]).form(&[("city", "Surulere")]).bearer(&account.access));
        assert_eq!(form.at("data.city"), json!("Surulere"));
    });
}

#[test]
fn nothing_else_is_changed() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let before = side.me(&account.access).at("data");
        let id = "01890a5d-ac96-774b-bcce-b302099a8057";
        let answer = side.send(&Request::patch(ME[0], &json!({
            "email": "other@example.com", "phone": "+2348031234567", "role": "admin", "is_staff": true, "is_superuser": true,
            "is_verified": false, "is_active": false, "id": id, "user_id": id, "pid": "aaaaaaaaaa", "password": "x",
            "password_hash": "x", "auth_provider": "google", "date_joined": "2001-01-01T00:00:00Z", "last_login": null,
            "email_verified": true, "deleted_at": "2001-01-01T00:00:00Z"
        })).bearer(&account.access));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert_eq!(side.me(&account.access).at("data"), before);
        let answer = side.post("auth/login/", &json!({ "email_or_phone": account.email, "password": PASSWORD }));
        assert_eq!(answer.at("data.role"), json!("client"));
    });
}

#[test]
fn a_value_that_does_not_fit_is_refused_and_named() {
    refuse_all(|side| {
        let account = side.account("ada");
        let mut cases = Vec::new();
        let long = "x".repeat(151);
        for (name, field, value) in [
            ("long", "first_name", json!(long)),
            ("long too", "last_name", json!(long)),
            ("a NUL", "bio", json!("a\0b")),
            ("a list", "city", json!(["Ikeja"])),
            ("a script", "avatar", json!("javascript:alert(1)")),
            ("long bio", "bio", json!("x".repeat(50_000))),
        ] {
            let request = Request::patch(ME[0], &json!({ field: value })).bearer(&account.access);
            cases.push(Refused::new(name, request, 400, &["validation_error"]).field(field));
        }
        cases
    });
}

#[test]
fn one_bad_field_changes_nothing() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let body = json!({ "city": "Ikeja", "first_name": "x".repeat(151) });
        let answer = side.send(&Request::patch(ME[0], &body).bearer(&account.access));
        side.refused(&answer, 400, "validation_error");
        assert_ne!(side.me(&account.access).at("data.city"), json!("Ikeja"));
    });
}

#[test]
fn the_account_is_shown_to_nobody_else() {
    refuse_all(|_| {
        let mut cases = Vec::new();
        for path in ME {
            cases.push(Refused::new("read", Request::get(path), 401, &["not_authenticated"]));
            let patch = Request::patch(path, &json!({ "city": "Ikeja" }));
            cases.push(Refused::new("change", patch, 401, &["not_authenticated"]));
        }
        cases
    });
}

#[test]
fn a_change_of_one_engine_is_seen_by_the_other() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        assert_eq!(side.me(&account.access).at("data.city"), side.me(&account.access).at("data.city"));
        let request = Request::patch(ME[0], &json!({ "city": "Ikeja" })).bearer(&account.access);
        assert_eq!(side.send_to_other(&request).status, 200);
        assert_eq!(side.me(&account.access).at("data.city"), json!("Ikeja"));
    });
}
