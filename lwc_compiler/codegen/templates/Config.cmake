# find_package(@symbol@ CONFIG) with @symbol@_DIR set to this folder gives
#   @symbol@::@symbol@         the static library
@if shared
#   @symbol@::@symbol@_shared  the shared library
@end
if(NOT TARGET @symbol@::@symbol@)
    add_library(@symbol@::@symbol@ STATIC IMPORTED GLOBAL)
    set_target_properties(@symbol@::@symbol@ PROPERTIES
        IMPORTED_LOCATION "${CMAKE_CURRENT_LIST_DIR}/lib@name@.a"
        IMPORTED_LINK_INTERFACE_LANGUAGES C
        INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}")
@if shared
    find_package(Threads REQUIRED)
    set_property(TARGET @symbol@::@symbol@ PROPERTY INTERFACE_LINK_LIBRARIES Threads::Threads m)

    add_library(@symbol@::@symbol@_shared SHARED IMPORTED GLOBAL)
    set_target_properties(@symbol@::@symbol@_shared PROPERTIES
        IMPORTED_LOCATION "${CMAKE_CURRENT_LIST_DIR}/lib@name@.so"
        IMPORTED_NO_SONAME TRUE
        INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}")
@else
    set_property(TARGET @symbol@::@symbol@ PROPERTY INTERFACE_LINK_LIBRARIES m)
@end
endif()
