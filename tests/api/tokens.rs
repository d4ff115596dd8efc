//! Tokens that are not ours, not whole, out of date or at the wrong door.

use crate::support::{Account, Request, Side, claims_of, for_each_world, pause, signed};
use crate::{BRISK, ORDINARY, SIGNING_KEY};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use std::time::Duration;

/// Neither a door that takes access tokens nor the one that checks them lets it pass.
fn assert_refused(side: &mut Side<'_>, token: &str, what: &str) {
    let answer = side.me(token);
    assert_eq!((answer.status, answer.at("code")), (401, json!("token_not_valid")), "{what}: {}", answer.shown());
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{what}");
    let answer = side.post("auth/token/verify/", &json!({ "token": token }));
    assert_eq!((answer.status, answer.at("code")), (401, json!("token_not_valid")), "{what}: {}", answer.shown());
}

/// The account's access token with some claims changed (null removes one), signed with the right key.
fn forged(account: &Account, changes: &Value) -> String {
    let token = claims_of(&account.access).expect("a token of three parts");
    let mut claims = token.claims.clone();
    if let (Some(claims), Some(changes)) = (claims.as_object_mut(), changes.as_object()) {
        claims.extend(changes.clone());
        claims.retain(|_, value| !value.is_null());
    }
    signed(&token.header, &claims, SIGNING_KEY.as_bytes())
}

#[test]
fn the_signing_key_of_the_configuration_is_used_as_it_is() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let same = forged(&account, &json!({}));
        assert_eq!(side.me(&same).status, 200, "or the forged tokens of the other tests prove nothing");
    });
}

#[test]
fn a_valid_token_is_valid_and_an_invalid_one_is_not() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let answer = side.post("auth/token/verify/", &json!({ "token": account.access }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        for body in [json!({}), json!({ "token": null }), json!({ "token": "" })] {
            let answer = side.post("auth/token/verify/", &body);
            side.refused(&answer, 400, "validation_error");
        }
        let answer = side.post("auth/token/verify/", &json!({ "token": "nonsense" }));
        side.refused(&answer, 401, "token_not_valid");
    });
}

#[test]
fn no_token_is_not_the_same_as_a_bad_one() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let me = || Request::get("/api/{v}/auth/me/");
        let answer = side.send(&me());
        side.refused(&answer, 401, "not_authenticated");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        for value in ["Basic YTpi", "Token x"] {
            let answer = side.send(&me().header("Authorization", value));
            side.refused(&answer, 401, "not_authenticated");
        }
        for value in ["Bearer", "Bearer ", "Bearer a b c"] {
            let answer = side.send(&me().header("Authorization", value));
            assert_eq!(answer.status, 401, "{value}: {}", answer.shown());
        }
        let lower = side.send(&me().header("Authorization", format!("bearer {}", account.access)));
        assert!([200, 401].contains(&lower.status));
        let query = side.send(&Request::get(&format!("/api/{{v}}/auth/me/?access={}&token={0}", account.access)));
        assert_eq!(query.status, 401, "a token in the address is no credential");
    });
}

#[test]
fn a_refresh_token_is_no_access_token() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let answer = side.me(&account.refresh);
        side.refused(&answer, 401, "token_not_valid");
    });
}

#[test]
fn a_mangled_token_is_refused() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let token = account.access.as_str();
        let cut = |count: usize| token.get(..token.len() - count).unwrap_or_default().to_owned();
        let (signed, signature) = token.rsplit_once('.').expect("three parts");
        let parts: Vec<_> = token.split('.').collect();
        let mut mangled = vec![
            format!("{token}."),
            format!("{token}="),
            format!("{token}.{signature}"),
            format!("{signed}."),
            signed.to_owned(),
            format!("{signed}.{}", signature.to_uppercase()),
            token.to_uppercase(),
            format!("{signed}.{}", "A".repeat(43)),
            format!(".{token}"),
            parts.join(".."),
            parts[0].to_owned(),
        ];
        mangled.extend([1, 2, 3, 10, 42].map(cut));
        for token in mangled {
            assert_refused(side, &token, &token);
        }
    });
}

#[test]
fn a_token_signed_by_nobody_or_with_another_key_is_refused() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let token = claims_of(&account.access).expect("a token of three parts");
        let with = |algorithm: &str| {
            let mut header = token.header.clone();
            header.as_object_mut().into_iter().for_each(|header| {
                header.insert("alg".to_owned(), json!(algorithm));
            });
            header
        };
        for algorithm in ["none", "None", "NONE", "HS384", "RS256", "ES256", "EdDSA", ""] {
            let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
            let bare = format!("{}.{}.", encode(&with(algorithm)), encode(&token.claims));
            assert_refused(side, &bare, algorithm);
            let right_key = signed(&with(algorithm), &token.claims, SIGNING_KEY.as_bytes());
            assert_refused(side, &right_key, algorithm);
        }
        let other_key = signed(&token.header, &token.claims, b"another-key-another-key-another-key-1234");
        assert_refused(side, &other_key, "another key");
        let no_key = signed(&token.header, &token.claims, b"");
        assert_refused(side, &no_key, "an empty key");
        let own_key =
            json!({ "alg": "HS256", "typ": "JWT", "jwk": { "kty": "oct", "k": "YQ" }, "kid": "../../dev/null" });
        let header_key = signed(&own_key, &token.claims, b"a");
        assert_refused(side, &header_key, "a key that it brought along");
    });
}

#[test]
fn claims_that_are_missing_or_of_others_are_refused_with_the_right_signature_too() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let other = side.account("bayo");
        let refresh = claims_of(&account.refresh).expect("a token of three parts");
        for (what, changes) in [
            ("expired", json!({ "exp": 1_700_000_000, "iat": 1_699_999_000 })),
            ("no exp", json!({ "exp": null })),
            ("exp as text", json!({ "exp": "4102444800" })),
            ("another issuer", json!({ "iss": "another" })),
            ("another audience", json!({ "aud": "another" })),
            ("no type", json!({ "token_type": null })),
            ("another type", json!({ "token_type": "mfa" })),
            ("no session", json!({ "sid": null })),
            ("an unknown session", json!({ "sid": "01890a5d-ac96-774b-bcce-b302099a8057" })),
            ("a session that is no id", json!({ "sid": "1 OR 1=1" })),
            ("another user", json!({ "user_id": other.user_id })),
            ("an unknown user", json!({ "user_id": "01890a5d-ac96-774b-bcce-b302099a8057" })),
        ] {
            let token = forged(&account, &changes);
            assert_refused(side, &token, what);
        }
        let as_access = forged(&account, &json!({ "jti": refresh.claims.get("jti"), "token_type": "refresh" }));
        let answer = side.me(&as_access);
        side.refused(&answer, 401, "token_not_valid");
    });
}

#[test]
fn an_access_token_ends_with_its_time() {
    for_each_world(BRISK, |side| {
        let account = side.account("ada");
        assert_eq!(side.me(&account.access).status, 200);
        pause(Duration::from_millis(4200));
        assert_refused(side, &account.access, "expired");
        let answer = side.refresh(&account.refresh);
        assert_eq!(answer.status, 200, "the session goes on: {}", answer.shown());
        let access = answer.text("data.access");
        assert_eq!(side.me(&access).status, 200);
    });
}

#[test]
fn a_token_of_one_engine_is_taken_by_the_other() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let answer = side.send_to_other(&Request::get("/api/{v}/auth/me/").bearer(&account.access));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        let body = json!({ "refresh": account.refresh });
        let answer = side.send_to_other(&Request::post("/api/{v}/auth/token/refresh/", &body));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        let access = answer.text("data.access");
        assert_eq!(side.me(&access).status, 200);
    });
}
